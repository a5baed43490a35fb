"""Tables of the transport benchmark, for the terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from common.result_files import cell, markdown_table
from rich.table import Table

CASE = ("level", "n", "m", "d", "device", "method", "seconds", "ratio_to_ours", "range", "peak_mb", "error_over_gain",
        "cos_codes", "cos_text", "cos_project")  # fmt: skip
ACCURACY = ("family", "level", "epsilon", "problems", "gap_over_gain", "error_over_gain", "marginal_p95",
            "marginal_worst", "cos_codes", "cos_text", "cos_project")  # fmt: skip


def rows_of(result: dict[str, Any]) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, head and cells of the three tables."""
    cases = [case | {"range": "–".join(f"{r:.3g}" for r in case["ratio_range"])} for case in result["cases"]]
    seconds = result["growth"]["seconds"]
    sizes = sorted(seconds.get("ours", {}))
    curve = [[name, *(cell(times.get(n)) for n in sizes), cell(result["growth"]["exponent"][name])]
             for name, times in seconds.items()]  # fmt: skip
    return [
        ("forward and backward with the projection, b = 8, clustered codes", CASE,
         [[cell(case[key]) for key in CASE] for case in cases]),
        ("seconds against n (b = 2, m = 64, d = 384)", ("method", *map(str, sizes), "exponent"), curve),
        ("solve at its default blur, .02, and at smaller ones: worst of the problems", ACCURACY,
         [[cell(row[key]) for key in ACCURACY] for row in result["accuracy"]]),
    ]  # fmt: skip


def tables(result: dict[str, Any]) -> list[Table]:
    """The tables for the terminal."""
    made = []
    for title, head, rows in rows_of(result):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        made.append(table)
    return made


def markdown(result: dict[str, Any]) -> str:
    """The page of results."""
    protocol = result["protocol"]
    lines = [
        f"# Transport\n\n{protocol['machine']}, one thread; {protocol['versions']}.\n\n{protocol['text'].strip()}\n"
    ]
    for title, head, rows in rows_of(result):
        lines += [f"\n## {title}\n", markdown_table(head, rows)]
    return "\n".join(lines)
