"""`tavq evaluate`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tavq_plugin.cli.console import BROKEN, console_for, evaluations_progress, print_json, report_errors
from tavq_plugin.cli.options import AsJson, Debug, IdField, TextField, read_settings


def evaluate(
    sources: Annotated[list[str], typer.Argument(
        metavar="[NAME=]SOURCE",
        help="file.py:function or module:function that returns a host, (host, optimizer), (host, optimizer, align) or "
             "a tokenizer; a YAML file with target and params; the folder of a run; or the folder of a comparison or a "
             "demo, for all its runs.")],
    out: Annotated[Path, typer.Option(help="Folder for evaluate.json, the tables and the page.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of images and texts. Default: the data of the runs given, else drawn scenes."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Held-out images: tune, to choose settings by, or test, to report once.")
    ] = "tune",
    resolution: Annotated[
        int | None, typer.Option(min=16, help="Width and height in pixels. Default: that of the runs, else 64.")
    ] = None,
    n_train: Annotated[
        int | None, typer.Option("--train", min=2, help="At most this many training images, for probes. Default: 3000.")
    ] = None,
    n_eval: Annotated[
        int | None,
        typer.Option("--eval", min=2, help="At most this many tune images. Default: 500. The test split is whole."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the weights of the networks that judge images.")
    ] = None,
    allow: Annotated[list[str] | None, typer.Option(help="One more package that a YAML or a recipe may name.")] = None,
    any_data: Annotated[
        bool, typer.Option("--any-data", help="With --split test: also take runs that may have trained on other data.")
    ] = False,
    text_field: TextField = None,
    id_field: IdField = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Measure tokenizers of your own training loop beside finished runs, without training anything.

    All get the same probes, floors and chance. This is the only command that can read the test split.

    Give the same command again to resume it, or to see its results. Exit code 1: finished, but a tokenizer failed.
    """
    from tavq_plugin.evaluation.report.markdown import terminal
    from tavq_plugin.evaluation.sources.evaluate_sources import evaluate_sources

    console = console_for(as_json)
    with (
        report_errors(console, f"Finished results are in {out}", as_json=as_json, debug=debug),
        evaluations_progress(console) as (started, finished),
    ):
        content = evaluate_sources(
            sources, out=out, data=data, split=split, resolution=resolution, n_train=n_train, n_eval=n_eval,
            weights=weights, allow=allow or (), any_data=any_data, tell=console.print, started=started,
            finished=finished, read=read_settings(data, text_field, id_field),
        )  # fmt: skip
    if as_json:
        print_json(content)
    else:
        console.print(terminal(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/evaluate.html, evaluate.md, evaluate.json and pictures")
    if content["failed"]:
        raise typer.Exit(BROKEN)
