"""What commands say: errors, with the exit code, and how far runs have come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

Report = Callable[[str, int, int], None]  # run, optimizer steps done, of how many


@contextmanager
def report_errors(console: Console, kept: str) -> Iterator[None]:
    """Errors that a user can mend, as one line and exit code 2; Ctrl-C as 130, with what is kept."""
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
    """Progress bars over runs and, below, over the steps of those that train."""
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
