"""One table of a comparison: methods, floors and chance are rows, metrics are columns, and notes are below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tavq_plugin.evaluation.metrics.cards import STORED, card_of
from tavq_plugin.evaluation.metrics.statistics import SEEDS_TO_TEST
from tavq_plugin.evaluation.report.cells import (
    EMPTY,
    Cell,
    Column,
    base_of,
    column_of,
    mark_of,
    shown_number,
    value_cell,
)

NEEDED = ("protocol", "headline", "methods", "floors", "absent", "differences", "best", "equal_time", "unmoved")
SIZES = ("tokens", "bits")  # of the stored codes of one image
CHANCE = "chance"  # name of the row of chance values
NO_REASON = "no run has a value"


@dataclass(frozen=True)
class Row:
    """One method, floor or seed, with one cell per column."""

    name: str
    cells: tuple[Cell, ...]
    method: bool = True  # False for floors, ceilings and chance, which are set in italics


@dataclass(frozen=True)
class Group:
    """Rows under one label; an empty label is not shown."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table with its notes."""

    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def marked(self) -> bool:
        """Whether any cell has a mark."""
        return any(cell.mark for row in self.rows for cell in row.cells)


def refuse_former_content(content: Mapping[str, Any]) -> None:
    """Raise ValueError if a comparison's content lacks what an older version did not write."""
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise ValueError(
            f"this comparison has no {', '.join(map(repr, missing))}: an older version of tavq-plugin tabulated it. "
            "Give its `tavq compare` command again; finished runs are kept"
        )


def few_seeds(content: Mapping[str, Any]) -> bool:
    """Whether a comparison has too few seeds for a test, so that nothing is marked or bold."""
    return len(content["protocol"]["seeds"]) < SEEDS_TO_TEST


def metric_table(
    content: Mapping[str, Any],
    title: str,
    metrics: Sequence[str],
    *,
    equal_time: bool = False,
    level: bool = False,
) -> Table:
    """A table of those metrics that any method has; a note says why the others are left out.

    Args:
        content: The content of compare.json.
        title: The table's caption.
        metrics: Metrics in the order of their columns. Those that stay at chance are left out.
        equal_time: Show the methods at equal wall-clock, with their steps.
        level: Name the level in each head.
    """
    part = content["equal_time"] if equal_time else content
    methods, few, best = part["methods"], few_seeds(content), {} if equal_time else content["best"]
    metrics = [name for name in metrics if name not in content["unmoved"]]
    shown = [name for name in metrics if any(_has(table.get(name), name) for table in methods.values())]
    before = (Column("steps"),) if equal_time else ()
    rows = {}
    for name, table in methods.items():
        cells = [
            value_cell(
                table.get(metric),
                metric,
                mark="" if few else mark_of(part["differences"].get(metric, {}).get(name), metric),
                best=not few and best.get(metric) == name,
                why=_reason(content, name, metric),
            )
            for metric in shown
        ]
        ahead = (Cell(shown_number(part["steps"].get(name), 0)),) if equal_time else ()
        rows[name] = Row(name, (*ahead, *cells))
    groups = [*_by_size(rows, {name: size_of(table) for name, table in methods.items()}, content["protocol"])]
    if len(groups) == 1 and groups[0].title:
        title, groups = f"{title}; {groups[0].title} an image", [replace(groups[0], title="")]
    blank = (Cell(""),) * len(before)
    floors = tuple(Row(name, (*blank, *cells), method=False) for name, cells in _floors(content, shown))
    groups += [Group("floors and ceilings", floors)] if floors else []
    chances = [_chance(methods, metric) for metric in shown]
    if any(cell.text != EMPTY for cell in chances):
        groups.append(Group("", (Row(CHANCE, (*blank, *chances), method=False),)))
    columns = (*before, *(column_of(metric, level=level) for metric in shown))
    missing = [(metric, name) for metric in metrics if metric not in shown for name in methods]
    missing += [
        (metric, row.name)
        for row in (*rows.values(), *floors)
        for metric, cell in zip(shown, row.cells[len(before) :], strict=True)
        if cell.why
    ]
    return Table(title, columns, tuple(groups), tuple(_reasons(content, missing)))


def interval_note(tables: Iterable[Table]) -> str:
    """A sentence on what ± is in these tables; empty if no value has an interval."""
    overs: dict[str, dict[str, None]] = {}
    of_floors: dict[str, None] = {}
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.over and row.method:
                    overs.setdefault(cell.over, {})[card_of(column.metric).head] = None
                elif cell.over:
                    of_floors[cell.over] = None
    if not overs and not of_floors:
        return ""
    first, *others = sorted(overs, key=lambda over: -len(overs[over])) or [""]
    said = [_over(first)] if first else []
    said += [f"{_over(over)} for {', '.join(overs[over])}" for over in others]
    said += [f"{_over(over)} for floors" for over in of_floors if over != first]
    return f"± is half of the 95 % interval, {'; '.join(said)}."


def size_of(table: Mapping[str, Any]) -> str:
    """Tokens and bits of the stored codes of an image; empty if they are not known."""
    known = [(size, f"{size}_{STORED}") for size in SIZES if f"{size}_{STORED}" in table]
    return ", ".join(f"{value_cell(table[metric], metric).text} {size}" for size, metric in known)


def _over(over: str) -> str:
    return f"over {over}" if " and " in over else f"over {over} alone"


def _has(values: Mapping[str, Any] | None, metric: str) -> bool:
    return value_cell(values, metric).text != EMPTY


def _by_size(rows: Mapping[str, Row], sizes: Mapping[str, str], protocol: Mapping[str, Any]) -> Iterable[Group]:
    """One group per number of tokens and bits, the reference's first; its label is that number."""
    first = sizes.get(protocol.get("reference") or "")
    distinct = sorted(dict.fromkeys(sizes.values()), key=lambda size: size != first)
    for size in distinct:
        chosen = tuple(row for name, row in rows.items() if sizes[name] == size)
        yield Group(size or ("tokens and bits not known" if len(distinct) > 1 else ""), chosen)


def _floors(content: Mapping[str, Any], shown: Sequence[str]) -> Iterable[tuple[str, list[Cell]]]:
    """The floors that have any of the metrics, each with its cells."""
    for name, table in content["floors"].items():
        cells = [value_cell(table.get(metric), metric, why=_reason(content, name, metric)) for metric in shown]
        if any(cell.text != EMPTY for cell in cells):
            yield name, cells


def _chance(methods: Mapping[str, Mapping[str, Any]], metric: str) -> Cell:
    """The chance of a metric: one number, or its range over the methods."""
    digits = card_of(metric).digits
    known = [table[metric].get("chance") for table in methods.values() if metric in table]
    known = [value for value in known if shown_number(value, 0) != EMPTY]
    if not known:
        return Cell()
    low, high = shown_number(min(known), digits), shown_number(max(known), digits)
    return Cell(low if low == high else f"{low} to {high}")


def _reason(content: Mapping[str, Any], name: str, metric: str) -> str:
    """Why a method or floor has no value of a metric, as far as it is stated."""
    reasons = content["absent"].get(name, {})
    return reasons.get(metric) or reasons.get(base_of(metric)) or NO_REASON


def _reasons(content: Mapping[str, Any], missing: Iterable[tuple[str, str]]) -> Iterable[str]:
    """One sentence per reason why values are missing; names are given where it does not concern all methods.

    A floor without a stated reason is left out: most metrics of codes do not apply to floors.
    """
    by_reason: dict[str, dict[str, dict[str, None]]] = {}
    for metric, name in missing:
        why = _reason(content, name, metric)
        of_all_levels = metric not in content["absent"].get(name, {}) and why != NO_REASON
        title = card_of(base_of(metric) if of_all_levels else metric).title
        if why != NO_REASON or name not in content["floors"]:
            by_reason.setdefault(why, {}).setdefault(title, {})[name] = None
    for why, by_title in by_reason.items():
        by_names: dict[tuple[str, ...], list[str]] = {}
        for title, names in by_title.items():
            by_names.setdefault(tuple(names), []).append(title)
        parts = [
            ", ".join(titles) + ("" if set(content["methods"]) <= set(names) else f" of {', '.join(names)}")
            for names, titles in by_names.items()
        ]
        yield f"not computed: {'; '.join(parts)}: {why}"
