"""`tavq demo`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tavq_plugin.cli.console import console_for, print_json, report_errors
from tavq_plugin.cli.options import AsJson, Data, Debug, IdField, TextField, read_settings


def demo(
    data: Data = None,
    resolution: Annotated[int, typer.Option(min=16, help="Width and height of the images, in pixels.")] = 32,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimizer steps per run. Default: 350 on drawn scenes of 32 px, else 250."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the batches and the shuffled texts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the runs, demo.json and the pictures.")] = Path("tavq-demo"),
    n_train: Annotated[
        int | None,
        typer.Option(
            "--train",
            "--n-train",
            min=2,
            help="At most this many training images. Default: 3000, or 1200 drawn scenes.",
        ),
    ] = None,
    n_eval: Annotated[
        int | None,
        typer.Option(
            "--eval",
            "--n-eval",
            min=2,
            help="At most this many images of the tune split. Default: 500, or 800 drawn scenes.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Start from a trained host: a file, or the folder of a finished run. Default: the VQGAN that ships "
            "with the package for drawn scenes of 32 px, else none.",
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Add the alignment by this weight λ, which falls to 0. Default: none, as its gradients are balanced.",
        ),
    ] = None,
    text_field: TextField = None,
    id_field: IdField = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a small VQGAN on without alignment, with it, and with shuffled texts; say what the numbers show.

    It replaces its own runs that were made with other settings. It stops at a file that it did not make, and names it.
    """
    from tavq_plugin.cli.demo import run_demo
    from tavq_plugin.cli.demo_settings import demo_settings
    from tavq_plugin.cli.demo_table import tables

    console = console_for(as_json)
    with report_errors(console, f"Finished runs are in {out}", as_json=as_json, debug=debug):
        settings = demo_settings(
            data=data, resolution=resolution, steps=steps, seed=seed, init=init, weight=weight, n_train=n_train,
            n_eval=n_eval, read=read_settings(data, text_field, id_field),
        )  # fmt: skip
        content = run_demo(settings, out=out, console=console)
    if as_json:
        print_json(content)
        return
    console.print(tables(content))
    console.print(f"written: {out}/demo.json, {out}/reconstructions.png, {out}/words.png, and a folder for each run")
    console.print(f"\n{content['verdict']['sentence']}", markup=False, highlight=False)
