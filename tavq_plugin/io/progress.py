"""The progress bar that all commands share."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console | None = None, *, shown: bool = True, detail: str | None = None) -> Progress:
    """A rich progress bar: description, bar, count of total, time left.

    Args:
        console: Where the bar is drawn. Default: rich's own, standard output.
        shown: If false, nothing is drawn; all calls still work.
        detail: Name of a task field that is printed after the count, such as "loss"; each task must then be added
            with that field.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    if detail is not None:
        columns.append(TextColumn(f"{{task.fields[{detail}]}}"))
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown)
