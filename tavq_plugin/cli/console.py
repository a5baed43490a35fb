"""What commands print: errors, with their exit codes, and the progress of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

Report = Callable[[str, int, int], None]  # name of the run, optimizer steps done, all its steps


@contextmanager
def report_errors(console: Console, kept: str) -> Iterator[None]:
    """Print an error that a user can fix as one line, and exit with code 2; on Ctrl-C print what is kept: code 130."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nStopped. {kept}; the same command goes on from there.")
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError, AttributeError, FloatingPointError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        raise typer.Exit(2) from None


@contextmanager
def runs_progress(console: Console, number: int) -> Iterator[tuple[Report, Callable[[str], None]]]:
    """Show a progress bar over all runs and, below it, one over the steps of each run that trains.

    Yields two functions: `report(run, done, steps)` moves the bar of a run, `finished(run)` takes it away.
    """
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
