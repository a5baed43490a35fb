"""What commands print besides their results: errors, with the exit code, and the progress of runs."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from tavq_plugin.io.progress import progress_bar

if TYPE_CHECKING:
    from tavq_plugin.evaluation.compare import ReportProgress
    from tavq_plugin.tasks.run_tasks import Reporting


DONE, BROKEN, REFUSED, LEFT_OUT, STOPPED_BY_SCHEDULER, STOPPED = 0, 1, 2, 3, 75, 130  # exit codes; docs/commands.md


class StoppedByScheduler(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as schedulers of clusters do before they take a machine away."""


def console_for(as_json: bool) -> Console:
    """Where a command talks: standard output, or standard error where standard output is for JSON alone."""
    return Console(stderr=as_json)


def print_json(content: Any) -> None:
    """Print what a command found as JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


@contextmanager
def report_errors(
    console: Console, after_interrupt: str, *, as_json: bool = False, debug: bool = False
) -> Iterator[None]:
    """Print an error that the user can fix to standard error, as plain text, and exit with code 2.

    After Ctrl-C, print the sentence `after_interrupt` and exit with code 130; after SIGTERM, with code 75.

    Args:
        console: Where the command prints.
        after_interrupt: What is kept after a stop, without a full stop.
        as_json: If true, what anything prints to standard output inside the block goes to standard error.
        debug: If true, print the traceback before the error. Default: the environment variable TAVQ_DEBUG.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with _raising_at_sigterm(), redirect_stdout(sys.stderr) if as_json else nullcontext():
            yield
    except KeyboardInterrupt as stop:
        errors.print(f"\nStopped. {after_interrupt}. Give the same command again to continue.", markup=False)
        raise typer.Exit(STOPPED_BY_SCHEDULER if isinstance(stop, StoppedByScheduler) else STOPPED) from None
    except (ValueError, OSError, ImportError, AttributeError, FloatingPointError) as error:
        if debug or os.environ.get("TAVQ_DEBUG"):
            traceback.print_exception(error)
        errors.print(Text(type(error).__name__, style="red").append(f": {error}", style="default"))
        raise typer.Exit(REFUSED) from None


@contextmanager
def _raising_at_sigterm() -> Iterator[None]:
    """Raise StoppedByScheduler in the block at SIGTERM; only the main thread can, so others leave it."""

    def stop(number: int, frame: object) -> None:
        raise StoppedByScheduler

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


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
