"""`tavq compare`: it parses, calls and prints."""

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


def compare(
    out: Annotated[Path, typer.Option(help="Folder for the runs, compare.json, the tables and the page.")],
    data: Data = None,
    methods: Annotated[str, typer.Option(help="Names of methods, separated by commas, or all.")] = "all",
    seeds: Annotated[
        str | None, typer.Option(help="Numbers, separated by commas. Default: the recipe's seed, or 0 if it has none.")
    ] = None,
    recipe: RecipeFile = "small",
    resolution: Resolution = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps per run. Default: the recipe's.")] = None,
    init: Init = None,
    overrides: Overrides = None,
    n_train: Annotated[
        int | None, typer.Option("--train", min=2, help="At most this many training images. Default: 3000; quick 1000.")
    ] = None,
    n_eval: Annotated[
        int | None,
        typer.Option("--eval", min=2, help="At most this many tune images. Default: 500; quick 300."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Folder with the weights of the networks that judge images: Inception, VGG16, MobileNetV2 …"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at the same time; each is a process of one thread.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps and images: all methods in half an hour.")] = False,
    equal_time: Annotated[
        bool | None,
        typer.Option(
            "--equal-time/--no-equal-time",
            help="Train methods of another speed once more, for the same time as the reference. Default: on, but not "
            "with --quick.",
        ),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Take the options that tavq tune chose there, and its finished runs."),
    ] = None,
    allow: Allow = None,
    text_field: TextField = None,
    id_field: IdField = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train every method on the same data by one recipe, measure all in the same way, and write a table and a page.

    It measures the tune split, because settings are chosen by a comparison; only `tavq evaluate` reads the test split.

    Give the same command again to resume a stopped comparison. Exit code 1: finished, but a run's loss was not finite.
    """
    from tavq_plugin.evaluation.compare import compare as run
    from tavq_plugin.evaluation.plan import plan_of
    from tavq_plugin.evaluation.report.markdown import terminal

    console = console_for(as_json)
    with report_errors(console, f"Finished runs are in {out}", as_json=as_json, debug=debug):
        plan = plan_of(
            out=out, data=data, methods=methods, seeds=seeds, recipe=recipe, resolution=resolution, steps=steps,
            init=init, overrides=overrides or (), n_train=n_train, n_eval=n_eval, weights=weights, quick=quick,
            equal_time=equal_time, allow=allow or (), read=read_settings(data, text_field, id_field),
            tuned=tuned,
        )  # fmt: skip
        with runs_progress(console, len(plan.jobs)) as (report, finished):
            content = run(plan, workers=workers, tell=console.print, report=report, finished=finished)
    if as_json:
        print_json(content)
    else:
        console.print(terminal(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/compare.html, compare.md, compare.json, pictures, and a folder for each run")
    if content["failed"]:
        raise typer.Exit(BROKEN)
