"""`tavq convert-checkpoint`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tavq_plugin.cli.console import report_errors
from tavq_plugin.cli.options import Debug


def convert_checkpoint(
    source: Annotated[Path, typer.Argument(help="A .ckpt, .pt or .pth file.", exists=True, dir_okay=False)],
    out: Annotated[
        Path | None, typer.Option(help="Path to write, without an ending. Default: that of the source.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="One more class, package.Class, to read as a plain record.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite existing files.")] = False,
    max_growth: Annotated[
        float, typer.Option(min=1, help="How many times as large as the source its tensors may become.")
    ] = 4.0,
    max_values: Annotated[int, typer.Option(min=1, help="Most values in the JSON.")] = 200_000,
    debug: Debug = False,
) -> None:
    """Read an old checkpoint without running its code; write safetensors, and its configuration as JSON."""
    from tavq_plugin.io.convert_checkpoint import convert_checkpoint as convert

    console = Console()
    with report_errors(console, "Nothing was written", debug=debug):
        written = convert(source, out, allow=allow or (), force=force, max_growth=max_growth, max_values=max_values)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)
