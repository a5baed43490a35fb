"""`tavq doctor`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tavq_plugin.cli.console import (
    BROKEN,
    DONE,
    REFUSED,
    console_for,
    print_json,
    report_errors,
)
from tavq_plugin.cli.options import AsJson, Debug


def doctor(
    target: Annotated[str, typer.Argument(
        help="file.py:function or module:function that returns a host, (host, optimizer) or (host, optimizer, align), "
             "each also with a dict of wrap's arguments at the end; or a YAML with target and params.")],
    captions: Annotated[Path | None, typer.Option(help="Folder with captions.jsonl or same-named .txt files.")] = None,
    taps: Annotated[list[str] | None, typer.Option(help="Path of a module to tap; give two, the finer first.")] = None,
    quantizer: Annotated[str | None, typer.Option(help="Path of the quantizer's module or method.")] = None,
    parse: Annotated[str | None, typer.Option(help="Function of the same file that reads the quantizer.")] = None,
    codebook: Annotated[str | None, typer.Option(help='Path of the codebook, or "own".')] = None,
    encode: Annotated[str | None, typer.Option(help="Method that runs the host through its quantizer.")] = None,
    layout: Annotated[str | None, typer.Option(help='Axes of the tapped features: "b c h w", "b n c", …')] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Side of your images, in pixels.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="One more package that the YAML may name.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Try one training step, write no file, and report what was found and what is missing.

    Exit code 0: a training step would work. 1: it would not. 2: the target could not be built.
    """
    import sys
    import traceback
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from tavq_plugin.cli.doctor import examine
    from tavq_plugin.cli.doctor_report import lines
    from tavq_plugin.hosts.user_setup import load_function, load_target

    console = Console(highlight=False)
    options = {"taps": taps, "quantizer": quantizer, "codebook": codebook, "encode": encode, "layout": layout}
    wrapping: dict[str, Any] = {name: value for name, value in options.items() if value}
    with report_errors(console, "Nothing was written", debug=debug), redirect_stdout(sys.stderr):  # hosts may print
        try:
            setup = load_target(target, allow=allow or ())
            if parse is not None:
                wrapping["parse"] = load_function(parse, beside=target)
        except Exception as error:  # the user's code may raise anything
            if debug:
                traceback.print_exception(error.__cause__ or error, file=sys.stderr)
            built = f"{type(error).__name__}: {error}"
        else:
            built = ""
            report = examine(
                setup.host,
                setup.optimizer,
                setup.align,
                captions=captions,
                resolution=resolution,
                **{**setup.wrapping, **wrapping},
            )
    if built and as_json:
        print_json({"ok": False, "not_built": built})
    elif built:
        console_for(as_json=True).print(built, markup=False, highlight=False, soft_wrap=True)
    elif as_json:
        print_json({**asdict(report), "ok": report.ok})
    else:
        for line in lines(report):
            console.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(REFUSED if built else DONE if report.ok else BROKEN)
