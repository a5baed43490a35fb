"""`tavq tune`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tavq_plugin.cli.console import BROKEN, console_for, print_json, report_errors, runs_progress
from tavq_plugin.cli.options import (
    Allow,
    AsJson,
    Data,
    Debug,
    IdField,
    Init,
    Overrides,
    RecipeFile,
    Resolution,
    TextField,
    read_settings,
)


def tune(
    out: Annotated[Path, typer.Option(help="Folder for the trials, tune.json and tune.md.")],
    data: Data = None,
    methods: Annotated[
        str, typer.Option(help="Names of methods, separated by commas, or all: those with a weight to choose.")
    ] = "all",
    seed: Annotated[int, typer.Option(help="Seed of every trial.")] = 0,
    recipe: RecipeFile = "small",
    resolution: Resolution = None,
    short_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the first trials.")] = 200,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of the best two again. Default: the recipe's.")
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option(help="Factors on a method's weights, separated by commas. Default: four of each method's own."),
    ] = None,
    margin: Annotated[float, typer.Option(min=0.0, help="dB of PSNR below vqgan that a strength may cost.")] = 0.1,
    init: Init = None,
    overrides: Overrides = None,
    n_train: Annotated[
        int | None, typer.Option("--train", min=2, help="At most this many training images. Default: 3000.")
    ] = None,
    n_eval: Annotated[
        int | None, typer.Option("--eval", min=2, help="At most this many tune images. Default: 500.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the weights of the networks that judge images, as for compare.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials at the same time; each is a process of one thread.")] = 1,
    allow: Allow = None,
    text_field: TextField = None,
    id_field: IdField = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose how strongly each method pulls on the tokenizer: as many trials for each, and one rule for all.

    The tune split decides. `tavq compare --tuned OUT` then compares the methods with what was chosen.

    Give the same command again to resume it. Exit code 1: finished, but a trial's loss was not finite.
    """
    from tavq_plugin.evaluation.plan import plan_of
    from tavq_plugin.evaluation.tuning.tune import TuneSettings, tunable
    from tavq_plugin.evaluation.tuning.tune import tune as run
    from tavq_plugin.evaluation.tuning.tuning_report import tuning_report

    console = console_for(as_json)
    with report_errors(console, f"Finished trials are in {out}", as_json=as_json, debug=debug):
        plan = plan_of(
            out=out, data=data, methods=methods, seeds=str(seed), recipe=recipe, resolution=resolution, steps=steps,
            init=init, overrides=overrides or (), n_train=n_train, n_eval=n_eval, weights=weights, allow=allow or (),
            read=read_settings(data, text_field, id_field),
        )  # fmt: skip
        settings = TuneSettings(short_steps, margin=margin, strengths=_numbers(strengths))
        names = tunable(plan, settings)
        trials = 2 + sum(len(settings.strengths_of(name)) + settings.kept for name in names)
        with runs_progress(console, trials) as (report, finished):
            content = run(plan, settings, workers=workers, tell=console.print, report=report, finished=finished)
    if as_json:
        print_json(content)
    else:
        console.print(tuning_report(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/tune.json, {out}/tune.md, and a folder for each trial")
    if content["failed"]:
        raise typer.Exit(BROKEN)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--strengths {text}: give numbers separated by commas, such as 0.5,1,2,4") from None
