"""What every command says of errors, and its exit code then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


@contextmanager
def told(console: Console, kept: str) -> Iterator[None]:
    """Errors that a user can mend, as one line and exit code 2; Ctrl-C as 130, with what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nStopped. {kept}; the same command goes on from there.")
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError, AttributeError, FloatingPointError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        raise typer.Exit(2) from None
