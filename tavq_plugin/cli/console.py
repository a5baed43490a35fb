"""What commands print besides their results: errors, with the exit code, and the progress of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

Report = Callable[[str, int, int], None]  # called with: run, optimizer steps done, steps in all


@contextmanager
def report_errors(console: Console, kept: str) -> Iterator[None]:
    """Print an error that the user can fix, as plain text, and exit with code 2.

    After Ctrl-C say what is kept, and exit with code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nStopped. {escape(kept)}; the same command continues from there.", soft_wrap=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError, AttributeError, FloatingPointError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


@contextmanager
def runs_progress(console: Console, number: int) -> Iterator[tuple[Report, Callable[[str], None]]]:
    """Show a progress bar over runs and, below it, one over the steps of each run that trains."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        whole, bars = progress.add_task("runs", total=number), {}

        def report(name: str, done: int, steps: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=steps)
            progress.update(bars[name], completed=done)

        def finished(name: str) -> None:
            progress.advance(whole)
            if name in bars:
                progress.remove_task(bars.pop(name))

        yield report, finished
