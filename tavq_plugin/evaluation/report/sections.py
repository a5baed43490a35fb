"""The parts of a comparison's report, for the page and for Markdown: which tables there are, and what is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tavq_plugin.evaluation.metrics.cards import APPENDIX, BY_LEVEL, PRIMARY, card_of
from tavq_plugin.evaluation.metrics.statistics import SEEDS_TO_TEST
from tavq_plugin.evaluation.report.cells import (
    EMPTY,
    Cell,
    Column,
    base_of,
    column_of,
    shown_number,
    shown_p,
    value_cell,
)
from tavq_plugin.evaluation.report.comparison_table import (
    CHANCE,
    SIZES,
    Group,
    Row,
    Table,
    few_seeds,
    interval_note,
    metric_table,
    size_of,
)
from tavq_plugin.io.counted import counted

LEVELS = (1, 2, 3)  # fine → coarse
TEST = "two-sided t test, Holm over the methods, p < .05"
EFFECTS = (
    "The test takes the differences by seed; where a metric has one value per image, seeds and images are both random."
)
CHANCES = "Chance is the metric's own value when texts are dealt at random among the held-out images."
FLOORS = (
    "Floors are features that nobody trained, measured by the same probes; codes that score no higher than a floor say "
    "no more about the text than it does. A ceiling is a network trained on labelled photographs."
)
AT_CHANCE = "These metrics say nothing about the text in this comparison, so they are in no table."
DETECTABLE = "the least true difference that so many seeds and images show in four of five cases (two-sided, p < .05)"


def protocol_line(content: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    protocol = content["protocol"]
    recipe, split = protocol["recipe"], protocol.get("split")
    seeds = [str(seed) for seed in protocol["seeds"]]
    held_out = f"{counted(protocol['n_eval'], 'images')} of the {split} split" if split else "held-out images"
    parts = [
        f"{protocol['data']}: {held_out}, {recipe['resolution']} px",
        *(
            [f"{counted(recipe['steps'], 'steps')} × {counted(recipe['batch_size'], 'images')}{_start(recipe)}"]
            if "steps" in recipe
            else []
        ),
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}",
        counted(protocol["n_train"], "training images"),
    ]
    parts += [f"commit {protocol['commit']}"] if protocol.get("commit") else []
    return "; ".join(parts) + "."


def _start(recipe: Mapping[str, Any]) -> str:
    """What the runs started from, if it was a trained host."""
    if not recipe.get("init"):
        return ""
    return f" from the trained host {recipe['init']} (sha256 {recipe['init_sha256'][:12]}…)"


def primary_tables(content: Mapping[str, Any]) -> list[Table]:
    """The stored codes alone: one table of pixels and codes, and one of the text."""
    return _pixels_and_text(content, "Level 3, the codes that are stored", equal_time=False)


def equal_time_tables(content: Mapping[str, Any]) -> list[Table]:
    """The same metrics after equal wall-clock; none if this was not measured."""
    if "methods" not in content["equal_time"]:
        return []
    return _pixels_and_text(content, "Level 3 after equal wall-clock", equal_time=True)


def level_table(content: Mapping[str, Any]) -> Table:
    """The metrics that every level has, level by level. Tokens and bits stand in the title if all methods agree."""
    tables = content["methods"].values()
    sizes = [
        {", ".join(f"{value_cell(t.get(f'{size}_{level}'), size).text} {size}" for size in SIZES) for t in tables}
        for level in LEVELS
    ]
    alike = all(len(distinct) == 1 and EMPTY not in next(iter(distinct)) for distinct in sizes)
    title = "All levels, L1 the finest, L3 stored"
    if alike:
        said = (f"L{level} has {next(iter(distinct))}" for level, distinct in zip(LEVELS, sizes, strict=True))
        title += f"; of an image, {'; '.join(said)}"
    metrics = [f"{name}_{level}" for name in BY_LEVEL if not (alike and name in SIZES) for level in LEVELS]
    return metric_table(content, title, metrics, level=True)


def appendix_table(content: Mapping[str, Any]) -> Table:
    """The metrics that are neither in the primary table nor in that of all levels."""
    return metric_table(content, "Further metrics, at level 3 where a metric has levels", APPENDIX)


def legend(content: Mapping[str, Any], tables: Iterable[Table], *, best: bool = True) -> list[str]:
    """Sentences below tables of metrics: what marks, bold, ± and chance mean."""
    tables = list(tables)
    reference = content["protocol"].get("reference")
    sentences = []
    if few_seeds(content):
        sentences.append(f"With fewer than {SEEDS_TO_TEST} seeds nothing is tested, marked or bold.")
    else:
        if reference is not None:
            sentences.append(f"▲ better or ▼ worse than {reference}, and the difference stands ({TEST}).")
        if best:
            sentences.append(f"Bold: the best mean, if it stands above every other method ({TEST}).")
    sentences.append(interval_note(tables))
    if any(row.name == CHANCE for table in tables for row in table.rows):
        sentences.append(CHANCES)
    return [sentence for sentence in sentences if sentence]


def floor_lines(content: Mapping[str, Any]) -> list[str]:
    """What floors are, and then what each is, as far as it is known; empty without floors."""
    if not content["floors"]:
        return []
    titles = content["protocol"].get("floors") or {}
    lines = [FLOORS]
    for name, table in content["floors"].items():
        about = [part for part in (titles.get(name), size_of(table)) if part]
        lines += [f"{name}: {', '.join(about)}"] if about else []
    left_out = content["protocol"].get("floors_left_out") or {}
    return lines + [f"not measured: {name}: {why}" for name, why in left_out.items()]


def lines_at_chance(content: Mapping[str, Any]) -> list[str]:
    """What metrics at chance are, and then which they are, one line per reason; empty without such metrics."""
    if not content["unmoved"]:
        return []
    by_reason: dict[str, list[str]] = {}
    for metric, why in content["unmoved"].items():
        by_reason.setdefault(why, []).append(card_of(metric).title)
    return [AT_CHANCE, *(f"{', '.join(titles)}: {why}" for why, titles in by_reason.items())]


def seed_tables(content: Mapping[str, Any]) -> list[Table]:
    """Below three seeds: the values of each seed, and the differences beside what this run can detect; else none."""
    if not few_seeds(content):
        return []
    methods, reference = content["methods"], content["protocol"].get("reference")
    metrics = [
        metric
        for metric in PRIMARY
        if (metric == "psnr" or card_of(metric).text)
        and metric not in content["unmoved"]
        and any(metric in table for table in methods.values())
    ]
    columns = tuple(map(column_of, metrics))
    rows = []
    for name, table in methods.items():
        by_metric = {metric: table.get(metric, {}).get("seeds", {}) for metric in metrics}
        for seed in dict.fromkeys(seed for values in by_metric.values() for seed in values):
            cells = (
                Cell(shown_number(values.get(seed), card_of(metric).digits)) for metric, values in by_metric.items()
            )
            rows.append(Row(f"{name}, seed {seed}", tuple(cells)))
    tables = [Table("Level 3, each seed", columns, (Group("", tuple(rows)),))]
    by_metric = {metric: content["differences"].get(metric, {}) for metric in metrics}
    rows = [
        Row(name, tuple(_difference_and_detectable(found.get(name), metric) for metric, found in by_metric.items()))
        for name in methods
        if any(name in found for found in by_metric.values())
    ]
    if rows:
        title = f"Difference from {reference}, mean over seeds; in brackets what this run can detect"
        tables.append(Table(title, columns, (Group("", tuple(rows)),), (f"In brackets: {DETECTABLE}.",)))
    return tables


def difference_table(content: Mapping[str, Any]) -> Table:
    """Every method minus the reference, for all metrics of the primary table."""
    heads = ("difference", "95 % interval", "p", "p, Holm", "detectable", "over", "stands")
    groups = []
    for metric in PRIMARY:
        found = {} if metric in content["unmoved"] else content["differences"].get(metric, {})
        rows = [Row(name, _difference_cells(found[name], metric)) for name in content["methods"] if name in found]
        if rows:
            groups.append(Group(column_of(metric).text, tuple(rows)))
    note = f"Stands: {TEST}, from {SEEDS_TO_TEST} seeds on. {EFFECTS} Detectable: {DETECTABLE}."
    title = f"Level 3, each method minus {content['protocol'].get('reference')}"
    return Table(title, tuple(map(Column, heads)), tuple(groups), (note,))


def metrics_with_cards(content: Mapping[str, Any], tables: Iterable[Table]) -> list[str]:
    """The metrics whose protocol cards the page shows: those of the tables, without levels, and those at chance."""
    metrics = [column.metric for table in tables for column in table.columns if column.metric]
    return [*dict.fromkeys(base_of(metric) for metric in (*SIZES, *metrics, *content["unmoved"]))]


def _pixels_and_text(content: Mapping[str, Any], title: str, *, equal_time: bool) -> list[Table]:
    metrics = [metric for metric in PRIMARY if base_of(metric) not in SIZES]
    return [
        metric_table(
            content,
            f"{title}: {part}",
            [metric for metric in metrics if card_of(metric).text == of_text],
            equal_time=equal_time,
        )
        for part, of_text in (("pixels and codes", False), ("what they say of the text", True))
    ]


def _difference_and_detectable(difference: Mapping[str, Any] | None, metric: str) -> Cell:
    if difference is None:
        return Cell()
    digits = card_of(metric).digits
    text = shown_number(difference["mean"], digits, sign=True)
    detectable = shown_number(difference["detectable"], digits)
    return Cell(text if detectable == EMPTY else f"{text} ({detectable})")


def _difference_cells(difference: Mapping[str, Any], metric: str) -> tuple[Cell, ...]:
    digits = card_of(metric).digits
    low, high = (shown_number(difference[end], digits, sign=True) for end in ("low", "high"))
    texts = (
        shown_number(difference["mean"], digits, sign=True),
        low if low == EMPTY else f"{low} to {high}",
        shown_p(difference["p"]),
        shown_p(difference["p_holm"]),
        shown_number(difference["detectable"], digits),
        difference.get("over") or EMPTY,
        "yes" if difference["stands"] else "no",
    )
    return tuple(map(Cell, texts))
