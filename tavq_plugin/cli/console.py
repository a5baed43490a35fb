"""What commands print besides their results: errors, with the exit code, and the progress of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from tavq_plugin.io.progress import progress_bar

if TYPE_CHECKING:
    from tavq_plugin.evaluation.compare import ReportProgress
    from tavq_plugin.tasks.run_tasks import Reporting


@contextmanager
def report_errors(console: Console, after_interrupt: str) -> Iterator[None]:
    """Print an error that the user can fix, as plain text, and exit with code 2.

    After Ctrl-C, print the sentence `after_interrupt` and exit with code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nStopped. {escape(after_interrupt)}. Give the same command again to continue.", soft_wrap=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError, AttributeError, FloatingPointError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


@contextmanager
def runs_progress(console: Console, number: int) -> Iterator[tuple[ReportProgress, Callable[[str], None]]]:
    """Show a progress bar over runs and, below it, one over the steps of each run that trains."""
    with progress_bar(console) as progress:
        runs, bars = progress.add_task("runs", total=number), {}

        def report(name: str, done: int, steps: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=steps)
            progress.update(bars[name], completed=done)

        def finished(name: str) -> None:
            progress.advance(runs)
            if name in bars:
                progress.remove_task(bars.pop(name))

        yield report, finished


@contextmanager
def evaluations_progress(console: Console) -> Iterator[tuple[Callable[[str, int], None], Callable[[str], None]]]:
    """Show a progress bar over what is evaluated, with the name of the run in work."""
    with progress_bar(console) as progress:
        task = progress.add_task("data", total=None)

        def started(name: str, number: int) -> None:
            progress.update(task, description=name, total=number)

        def finished(name: str) -> None:
            progress.advance(task)

        yield started, finished


@contextmanager
def tasks_progress(console: Console) -> Iterator[Reporting]:
    """Show a progress bar over tasks and runs and, below it, one over the steps of what is trained now."""
    from tavq_plugin.tasks.run_tasks import Reporting

    with progress_bar(console) as progress:
        tasks, part = progress.add_task("tasks", total=None), progress.add_task("", total=None, visible=False)

        def started(label: str, number: int) -> None:
            progress.update(tasks, description=label, total=number)

        def finished(label: str) -> None:
            progress.advance(tasks)
            progress.update(part, visible=False)

        def report(name: str, done: int, total: int) -> None:
            progress.update(part, description=name, completed=done, total=total, visible=True)

        yield Reporting(console.print, started, finished, report)
