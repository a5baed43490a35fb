"""The progress that all commands show: a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


def progress_bar(
    console: Console | None = None,
    *,
    shown: bool = True,
    detail: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Progress of tasks: description, bar, count of total, time left. Where no bar can be drawn, it prints lines.

    Args:
        console: Where it is shown. Default: rich's own, standard output.
        shown: If false, nothing is shown; all calls still work.
        detail: Name of a task field that is shown after the count, such as "loss"; each task must then be added with
            that field.
        clock: Seconds, which say when the next line is due.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    if detail is not None:
        columns.append(TextColumn(f"{{task.fields[{detail}]}}"))
    console = console or Console()
    if shown and not console.is_terminal:
        return ProgressLines(*columns, console=console, detail=detail, clock=clock)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown)


class ProgressLines(Progress):
    """Progress for a log file: a line at most every 30 seconds for each task, and nothing for a task that is done."""

    def __init__(self, *columns: Any, console: Console, detail: str | None, clock: Callable[[], float]) -> None:
        super().__init__(*columns, console=console, disable=True)
        self._detail, self._clock = detail, clock
        self._last: dict[TaskID, float] = {}

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        task = super().add_task(*args, **kwargs)
        self._last[task] = self._clock()
        return task

    def update(self, task_id: TaskID, **kwargs: Any) -> None:
        super().update(task_id, **kwargs)
        self._print_if_due(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_if_due(task_id)

    def _print_if_due(self, task_id: TaskID) -> None:
        task, now = self._tasks[task_id], self._clock()
        if task.finished or not task.visible or now - self._last[task_id] < SECONDS_BETWEEN_LINES:
            return
        self._last[task_id] = now
        of = "" if task.total is None else f" of {task.total:,.0f}"
        detail = f", {task.fields[self._detail]}" if self._detail and task.fields.get(self._detail) else ""
        line = f"{task.description.strip()}: {task.completed:,.0f}{of}{detail}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
