"""A comparison's report as Markdown: all of it for compare.md, and what fits a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tavq_plugin.evaluation.report.cells import EMPTY, Cell, Column
from tavq_plugin.evaluation.report.comparison_table import Group, Row, Table, refuse_former_content
from tavq_plugin.evaluation.report.sections import (
    appendix_table,
    difference_table,
    equal_time_tables,
    floor_lines,
    legend,
    level_table,
    lines_at_chance,
    primary_tables,
    protocol_line,
    seed_tables,
)
from tavq_plugin.io.redacted import with_short_paths

WIDTH = 120  # characters of a line; a wider table is split by its columns


def markdown(content: Mapping[str, Any]) -> str:
    """The whole report as Markdown, without absolute paths.

    Raises ValueError for a comparison that an older version tabulated.
    """
    refuse_former_content(content)
    content = with_short_paths(content)
    appendix = appendix_table(content)
    further = [*_section("Appendix", [appendix], legend(content, [appendix]))]
    differences = difference_table(content)
    if differences.rows:
        further += _section("Differences", [differences], [])
    return re.sub(r"<(?=[A-Za-z/!?])", r"\<", joined([*_first_parts(content), *further]))  # no HTML from data


def terminal(content: Mapping[str, Any]) -> str:
    """The report without its appendix and its table of differences. Raises ValueError as `markdown` does."""
    refuse_former_content(content)
    return joined(_first_parts(content))


def _first_parts(content: Mapping[str, Any]) -> Iterator[str]:
    """Paragraphs and tables up to the appendix."""
    yield content["headline"]
    yield protocol_line(content)
    yield "\n".join(f"- {note}" for note in content.get("notes", []))
    yield from (f"- broke: {name}: {why}" for name, why in content.get("failed", {}).items())
    primary = primary_tables(content)
    yield from _section("Stored codes", primary, legend(content, primary))
    floors = floor_lines(content)
    if floors:
        yield "## Floors"
        yield floors[0]
        yield "\n".join(f"- {line}" for line in floors[1:])
    seeds = seed_tables(content)
    if seeds:
        yield from _section("Seeds", seeds, [])
    levels = level_table(content)
    yield from _section("All levels", [levels], legend(content, [levels]))
    equal_time = equal_time_tables(content)
    if equal_time:
        yield from _section("Equal wall-clock", equal_time, legend(content, equal_time, best=False))
    else:
        yield "## Equal wall-clock"
        yield f"not computed: {content['equal_time']['missing']}"
    at_chance = lines_at_chance(content)
    if at_chance:
        yield "## Metrics at chance"
        yield at_chance[0]
        yield "\n".join(f"- {line}" for line in at_chance[1:])


def _section(title: str, tables: Iterable[Table], sentences: Iterable[str]) -> Iterator[str]:
    yield f"## {title}"
    for table in tables:
        yield f"{table.title}:"
        yield from table_parts(table)
        yield "\n".join(f"- {note}" for note in table.notes)
    yield " ".join(sentences)


def table_parts(table: Table) -> Iterator[str]:
    """The table, split by its columns into as many as its width needs; the first column is in each."""
    heads = [_head_text(column) for column in table.columns]
    widths = [
        max(3, *map(len, column))
        for column in zip(heads, *(map(_cell_text, row.cells) for row in table.rows), strict=True)
    ]
    first = max(map(len, [*map(_row_name, table.rows), *(_label(group) for group in table.groups)]))
    part: list[int] = []
    for place in range(len(widths) + 1):
        if part and (place == len(widths) or first + 4 + sum(widths[i] + 3 for i in (*part, place)) > WIDTH):
            yield _drawn(table, heads, [first, *widths], part)
            part = []
        part.append(place)


def _drawn(table: Table, heads: Sequence[str], widths: Sequence[int], part: Sequence[int]) -> str:
    """Some columns of a table; a row without any value in them is left out."""
    first, *others = widths

    def line(name: str, texts: Sequence[str]) -> str:
        return f"| {name.ljust(first)} | {' | '.join(texts[i].rjust(others[i]) for i in part)} |"

    lines = [line("", heads), f"| {'-' * first} | {' | '.join('-' * (others[i] - 1) + ':' for i in part)} |"]
    for group in table.groups:
        rows = [row for row in group.rows if any(row.cells[i].text != EMPTY for i in part)]
        lines += [line(_label(group), [""] * len(others))] if rows and group.title else []
        lines += [line(_row_name(row), [*map(_cell_text, row.cells)]) for row in rows]
    return "\n".join(lines)


def _label(group: Group) -> str:
    return f"*{_cell_text(Cell(group.title))}*"


def _row_name(row: Row) -> str:
    name = _cell_text(Cell(row.name))
    return name if row.method else f"*{name}*"


def _head_text(column: Column) -> str:
    """A head without the unit %, which each title of recall, mAP and usage implies."""
    return _cell_text(Cell((replace(column, unit="") if column.unit == "%" else column).text))


def _cell_text(cell: Cell) -> str:
    text = " ".join(cell.text.split()).replace("|", "\\|")
    return f"{f'**{text}**' if cell.best else text} {cell.mark}".rstrip()


def joined(parts: Iterable[str]) -> str:
    """Paragraphs with their lines broken at the width; tables as they are."""
    return "\n\n".join("\n".join(map(_broken, part.splitlines())) for part in parts if part) + "\n"


def _broken(line: str) -> str:
    if line.startswith("|"):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
