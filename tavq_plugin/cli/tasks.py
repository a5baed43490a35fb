"""`tavq task`: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tavq_plugin.cli.console import BROKEN, report_errors, tasks_progress
from tavq_plugin.cli.options import Debug, IdField, TextField, read_settings


def task(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="unconditional, semantic-synthesis, text-to-image, completion, grounding, captioning, vqa, or all.",
        ),
    ],
    runs: Annotated[
        list[str],
        typer.Option(
            "--run",
            metavar="[NAME=]RUN",
            help="The folder of a run, or of a comparison or a demo for all its runs, or your own tokenizer as for "
            "tavq evaluate. Give it again for each further run; the first is the baseline.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with captions.jsonl (texts, boxes, questions), a published data set, or images with "
            "same-named .txt files. Default: drawn scenes."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for tasks.json, the tables, the page and the models.")] = Path(
        "tavq-tasks"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the content of tasks.json here.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps and images, to see that everything works.")] = False,
    n_train: Annotated[
        int | None,
        typer.Option("--train", min=2, help="At most this many training images. Default: 3000; quick 300."),
    ] = None,
    n_eval: Annotated[
        int | None, typer.Option("--eval", min=2, help="At most this many held-out images. Default: 400; quick 60.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=16, help="Width and height in pixels. Default: that of the runs, else 32.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The run that others are compared with. Default: the first.")
    ] = None,
    levels: Annotated[
        str, typer.Option(help="Codes that models read and make: final, the decoder's level, or all levels.")
    ] = "final",
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the weights of the networks that judge images.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of every model. Default: the task's.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of every task, such as model.width=64."),
    ] = None,
    allow: Annotated[list[str] | None, typer.Option(help="One more package that a YAML or a recipe may name.")] = None,
    text_field: TextField = None,
    id_field: IdField = None,
    debug: Debug = False,
) -> None:
    """Train small models on the codes of runs, and measure what they can do: generate, ground, caption, answer.

    Every run gets the same model, steps and images, and the same controls. Nothing of a run is changed.

    Give the same command again to resume, or to see the results. Exit code 1: finished, but a training broke.
    """
    from tavq_plugin.tasks.read_task import read_task
    from tavq_plugin.tasks.report.write_tasks import terminal
    from tavq_plugin.tasks.run_tasks import run_tasks, save_copy

    console = Console()
    with report_errors(console, f"Finished results are in {out}", debug=debug), tasks_progress(console) as reporting:
        plan = read_task(
            names, runs, data=data, out=out, quick=quick, n_train=n_train, n_eval=n_eval, resolution=resolution,
            baseline=baseline, levels=levels, weights=weights, steps=steps, overrides=overrides or (),
            allow=allow or (), reporting=reporting, read=read_settings(data, text_field, id_field),
        )  # fmt: skip
        content = run_tasks(plan, reporting=reporting)
        if json_file is not None:
            save_copy(content, json_file)
    console.print(terminal(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/tasks.html, tasks.md, tasks.json{f' and {json_file}' if json_file else ''}")
    if content["failed"]:
        raise typer.Exit(BROKEN)
