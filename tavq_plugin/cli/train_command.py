"""`tavq train`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tavq_plugin.cli.console import console_for, print_json, report_errors
from tavq_plugin.cli.options import (
    Allow,
    AsJson,
    Data,
    Debug,
    IdField,
    Init,
    RecipeFile,
    TextField,
    options_given,
    read_settings,
)


def train(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    data: Data = None,
    method: Annotated[
        str | None, typer.Option(help="Name of the method: vqgan, tavq, … Default: the recipe's.")
    ] = None,
    recipe: RecipeFile = "small",
    init: Init = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the recipe, such as optimizer.warmup=5."),
    ] = None,
    n_train: Annotated[
        int | None,
        typer.Option("--train", min=2, help="At most this many training images. Default: all, or 2000 drawn scenes."),
    ] = None,
    n_eval: Annotated[int, typer.Option("--eval", min=2, help="At most this many images of the tune split.")] = 500,
    extend: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="Train the finished run in --out further, until it has this many steps in all, by a schedule of its "
            "own; no other options but --allow.",
        ),
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where curves and pictures go during training: tensorboard (in OUT/logs), wandb or none. Default: the "
            "recipe's.",
        ),
    ] = None,
    allow: Allow = None,
    text_field: TextField = None,
    id_field: IdField = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train one tokenizer by one method. On several GPUs: `accelerate launch -m tavq_plugin train …`.

    Give the same command again to resume a stopped run; the result is the same as without the stop. A finished run is
    kept. The command stops at a file that it did not make, and names it.
    """
    from tavq_plugin.cli.train import run_extension, run_train

    console = console_for(as_json)
    latest = f"The latest checkpoint, if there is one, is in {out}/checkpoints"
    with report_errors(console, latest, as_json=as_json, debug=debug):
        if extend is not None:
            given = options_given(ctx, but=("out", "extend", "allow", "as_json", "debug"))
            run = run_extension(out=out, steps=extend, given=given, allow=allow or (), console=console)
        else:
            run = run_train(
                out=out, data=data, method=method, recipe=recipe, init=init, tracker=tracker,
                overrides=overrides or (),
                n_train=n_train, n_eval=n_eval, allow=allow or (), console=console,
                read=read_settings(data, text_field, id_field),
            )  # fmt: skip
    if as_json and not console.quiet:  # the main process alone prints
        figures = {"seconds_per_step": run.seconds_per_step, "plugin_share": run.plugin_share}
        print_json({"out": str(out), "method": run.method.name, **figures, "last_row": run.history[-1]})
