"""The tables of a tasks.json: all tasks at a glance, then the conditions and the differences of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tavq_plugin.evaluation.metrics.statistics import SEEDS_TO_TEST
from tavq_plugin.evaluation.report.cells import EMPTY, Cell, Column, shown_number, shown_p
from tavq_plugin.evaluation.report.comparison_table import Group, Row, Table
from tavq_plugin.tasks.task import OF_CODES

DIFFERENCE = ("difference", "95 % interval", "p", "p (Holm)", "detectable", "stands")


class TaskTables(NamedTuple):
    """What is shown of one task."""

    name: str
    unfit: str  # why the data cannot serve it; "" if they can
    tables: tuple[Table, ...]
    missing: tuple[str, ...]  # sentences about metrics that are not computed, and about runs that broke


def overview(content: Mapping[str, Any]) -> Table:
    """One row per task, with the main metric of every run's codes; ▲ and ▼ mark differences that stand."""
    runs = _runs(content)
    rows = []
    for name, task in content["tasks"].items():
        if "unfit" in task:
            rows.append(Row(name, (Cell("not run"), *(Cell(why=task["unfit"]) for _ in runs))))
            continue
        metric = task["main_metric"]
        cells = [value_of(task, run, OF_CODES, metric, mark=mark_of(task, run, metric)) for run in runs]
        rows.append(Row(name, (Cell(f"{metric} {arrow_of(task)}"), *cells)))
    columns = (Column("metric"), *(Column(run) for run in runs))
    return Table("The codes of every run, by the main metric of each task", columns, (Group("", tuple(rows)),), ())


def task_tables(content: Mapping[str, Any]) -> list[TaskTables]:
    """The tables of every task, in the order of the content."""
    found = []
    for name, task in content["tasks"].items():
        failed = [f"{run} broke: {why}" for run, why in content["failed"].get(name, {}).items()]
        if "unfit" in task:
            found.append(TaskTables(name, task["unfit"], (), tuple(failed)))
            continue
        tables = [_conditions(name, task), *_controls(task), *_differences(task)]
        found.append(TaskTables(name, "", tuple(tables), (*_missing(task), *failed)))
    return found


def protocol_line(content: Mapping[str, Any]) -> str:
    """The data, the runs with their seeds and sizes, and what marks mean, in plain sentences."""
    protocol = content["protocol"]
    sizes = {name: f"{about['tokens']:,} tokens, {about['bits']:,.0f} bits" for name, about in protocol["runs"].items()}
    same = len(set(sizes.values())) == 1
    bits = f"All runs store {next(iter(sizes.values()))} an image." if same else (
        "Runs store different numbers of bits an image, so that they are not compared at equal size: "
        + "; ".join(f"{name}: {size}" for name, size in sizes.items()) + "."
    )  # fmt: skip
    seeds = {run: sorted({int(s) for s in _seeds(content, run)}) for run in _runs(content)}
    of_runs = "; ".join(f"{run}: {', '.join(map(str, numbers))}" for run, numbers in seeds.items())
    said = [
        f"Data: {protocol['data']}; {protocol['n_train']:,} training and {protocol['n_eval']:,} held-out images.",
        f"Seeds of the tokenizers: {of_runs}.",
        bits,
        "Every run and every control has the same model, steps and images. ± is half of the 95 % interval.",
    ]
    if protocol["quick"]:
        said.append("This is a quick run: few steps and few images, which only show that everything works.")
    if protocol["baseline"] is None:
        return " ".join([*said, "There is one run, so nothing is compared."])
    if min(map(len, seeds.values()), default=0) < SEEDS_TO_TEST:
        few = f"With fewer than {SEEDS_TO_TEST} seeds nothing is tested: an interval over images alone says nothing"
        return " ".join([*said, f"{few} about other seeds of the tokenizers."])
    return " ".join([*said, f"▲ is better and ▼ worse than {protocol['baseline']}, where the difference stands."])


def value_of(task: Mapping[str, Any], run: str, condition: str, metric: str, *, mark: str = "") -> Cell:
    """A mean with half of its interval."""
    cell = task["means"].get(run, {}).get(condition, {}).get(metric)
    if cell is None:
        return Cell(why="no seed of this run has a value")
    digits = digits_of(cell["mean"])
    text = shown_number(cell["mean"], digits)
    if cell["low"] is not None and cell["high"] is not None:
        text += f" ± {shown_number((cell['high'] - cell['low']) / 2, digits)}"
    return Cell(text, mark=mark, over=cell["over"] or "")


def digits_of(value: float) -> int:
    """Decimals of a value: three below 10, one above.

    >>> digits_of(0.5), digits_of(31.25)
    (3, 1)
    """
    return 3 if abs(value) < 10 else 1


def arrow_of(task: Mapping[str, Any]) -> str:
    """Which way is better in the task's main metric."""
    return "↓" if task["smaller_is_better"] else "↑"


def mark_of(task: Mapping[str, Any], run: str, metric: str) -> str:
    """▲ if a run is better than the baseline in the main metric, ▼ if worse, "" if the difference does not stand."""
    row = task["differences"].get(metric, {}).get(run)
    if row is None or not row["stands"] or not row["mean"]:
        return ""
    return "▲" if (row["mean"] < 0) == task["smaller_is_better"] else "▼"


def _conditions(name: str, task: Mapping[str, Any]) -> Table:
    """Every metric of the codes and of each control, by run."""
    metrics = _ordered(task, [m for run in task["means"].values() for part in run.values() for m in part])
    groups = [
        Group(run, tuple(
            Row(condition, tuple(value_of(task, run, condition, metric) for metric in metrics), condition == OF_CODES)
            for condition in conditions
        ))
        for run, conditions in task["means"].items()
    ]  # fmt: skip
    columns = (Column(metric, arrow=arrow_of(task) if metric == task["main_metric"] else "") for metric in metrics)
    return Table(f"{name}: the codes of each run, and its controls", tuple(columns), tuple(groups))


def _controls(task: Mapping[str, Any]) -> Iterator[Table]:
    """How far the codes are above each control, in the main metric."""
    metric = task["main_metric"]
    groups = []
    for run, controls in task["above_controls"].items():
        rows = [
            Row(control, tuple(map(Cell, _shown_difference(each[metric])[:3])))
            for control, each in controls.items()
            if metric in each
        ]
        if rows:
            groups.append(Group(run, tuple(rows)))
    if groups:
        yield Table(f"{metric}: codes minus each control", tuple(map(Column, DIFFERENCE[:3])), tuple(groups))


def _differences(task: Mapping[str, Any]) -> Iterator[Table]:
    """Each run minus the baseline, in every metric."""
    rows, minus = [], ""
    for metric in _ordered(task, list(task["differences"])):
        for run, row in task["differences"][metric].items():
            minus = row["minus"]
            texts = (
                *_shown_difference(row),
                shown_p(row["p_holm"]),
                _detectable(row),
                "yes" if row["stands"] else "no",
            )
            rows.append(Row(f"{run}, {metric}", tuple(map(Cell, texts))))
    if rows:
        yield Table(f"the codes of each run minus those of {minus}", tuple(map(Column, DIFFERENCE)), (
            Group("", tuple(rows)),
        ))  # fmt: skip


def _shown_difference(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Difference, interval and p."""
    digits = digits_of(row["mean"])
    low, high = (shown_number(row[end], digits, sign=True) for end in ("low", "high"))
    return (
        shown_number(row["mean"], digits, sign=True),
        EMPTY if EMPTY in (low, high) else f"{low} to {high}, over {row['over']}",
        shown_p(row["p"]),
    )


def _detectable(row: Mapping[str, Any]) -> str:
    return shown_number(row["detectable"], digits_of(row["mean"]))


def _missing(task: Mapping[str, Any]) -> list[str]:
    """One sentence per metric and reason, with the runs if not all of them lack it."""
    whys: dict[tuple[str, str], list[str]] = {}
    for run, seeds in task["runs"].items():
        for seed in seeds.values():
            for metric, why in seed["missing"].items():
                whys.setdefault((metric, why), []).append(run)
    everyone = list(task["runs"])
    sentences = []
    for (metric, why), runs in whys.items():
        named = list(dict.fromkeys(runs))
        of = "" if named == everyone else f" for {', '.join(named)}"
        sentences.append(f"{metric} is not computed{of}: {why}")
    return sentences


def _ordered(task: Mapping[str, Any], metrics: list[str]) -> list[str]:
    """Each metric once, the main one first."""
    return sorted(dict.fromkeys(metrics), key=lambda metric: metric != task["main_metric"])


def _runs(content: Mapping[str, Any]) -> list[str]:
    """Names of the runs, the first that was given first."""
    return list(dict.fromkeys(name.rpartition(", seed ")[0] for name in content["protocol"]["runs"]))


def _seeds(content: Mapping[str, Any], run: str) -> list[str]:
    return [seed for name in content["protocol"]["runs"] for at, _, seed in [name.rpartition(", seed ")] if at == run]
