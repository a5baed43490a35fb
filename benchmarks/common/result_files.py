"""The files that hold a benchmark's results: JSON, and a page of Markdown next to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def save_results(file: Path, content: Any, page: str | None = None) -> None:
    """Write the JSON and, if given, the page next to it; the folder is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if page is not None:
        file.with_suffix(".md").write_text(page, encoding="utf-8")


def cell(value: Any) -> str:
    """A value as a table shows it: four digits, "–" for None."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return "–" if value is None else str(value)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table of cells of any kind."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
