"""The `tavq` command; thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tavq_plugin.cli import text
from tavq_plugin.cli.console import report_errors as _told
from tavq_plugin.cli.console import runs_progress

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(text.caption)
app.command()(text.prepare)
app.add_typer(text.store, name="store")

BROKEN = 1  # exit code of a comparison that went through, one of its runs apart


@app.callback()
def main() -> None:
    """A codebook that speaks language, for any existing VQ image tokenizer."""


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with captions.jsonl, or images with same-named .txt files; default: drawn scenes."),
    ] = None,
    resolution: Annotated[int, typer.Option(min=16, help="Pixels a side.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 250,
    seed: Annotated[int, typer.Option(help="Of weights, batches and the shuffled control.")] = 0,
    out: Annotated[Path, typer.Option(help="Where runs, demo.json and pictures go.")] = Path("tavq-demo"),
    n_train: Annotated[
        int | None, typer.Option(min=2, help="Training images at most. Default: 3000, of drawn scenes 2000.")
    ] = None,
    n_eval: Annotated[int, typer.Option(min=2, help="Held-out images at most.")] = 500,
    weight: Annotated[
        float | None,
        typer.Option(min=0.0, help="λ of the alignment at the start; it falls to 0. Default: .3, on drawn scenes .03."),
    ] = None,
) -> None:
    """Train a small VQGAN without alignment, with it, and with shuffled texts; print one table.

    Runs of other settings are replaced; what this command did not make is refused by name and stays.
    """
    from tavq_plugin.cli.demo import SCENES, SCENES_WEIGHT, demo_recipe, run_demo
    from tavq_plugin.cli.demo_table import table
    from tavq_plugin.methods.tavq import WEIGHT

    console = Console()
    with _told(console, f"Finished runs are in {out}"):
        if weight is None:  # a run on drawn scenes has few steps: a tenth of the weight
            weight = SCENES_WEIGHT if data is None else WEIGHT
        content = run_demo(
            data=data, recipe=demo_recipe(resolution=resolution, steps=steps, seed=seed), weight=weight, out=out,
            n_train=n_train or (SCENES if data is None else 3000), n_eval=n_eval, console=console,
        )  # fmt: skip
    console.print(table(content))
    console.print(f"written: {out}/demo.json, {out}/reconstructions.png, {out}/words.png, and a folder for each run")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with captions.jsonl, or images with .txt; default: drawn scenes.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="vqgan, tavq, … Default: the recipe's.")] = None,
    recipe: Annotated[str, typer.Option(help="A YAML file, or the name of one that ships.")] = "small",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Of the recipe, dotted, as optimizer.warmup=5."),
    ] = None,
    n_train: Annotated[
        int | None, typer.Option("--train", min=2, help="Training images at most. [all; 2000 scenes]")
    ] = None,
    n_eval: Annotated[int, typer.Option("--eval", min=2, help="Images held out at most.")] = 500,
    allow: Annotated[list[str] | None, typer.Option(help="A further package that a recipe's target may name.")] = None,
) -> None:
    """Train one tokenizer by one method; with `accelerate launch -m tavq_plugin train …` on several GPUs.

    The same command goes on where it was stopped, to what it would have been, and keeps a run that is finished.
    A file in the folder that this command did not make is refused by name and stays.
    """
    from tavq_plugin.cli.train import run_train

    console = Console()
    with _told(console, f"Checkpoints, if it came to one, are in {out}/checkpoints"):
        run_train(
            out=out, data=data, method=method, recipe=recipe, overrides=overrides or (), n_train=n_train, n_eval=n_eval,
            allow=allow or (), console=console,
        )  # fmt: skip


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="Where runs, compare.json, tables and the page go.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with captions.jsonl, or images with .txt; default: drawn scenes.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "all",
    seeds: Annotated[
        str | None, typer.Option(help="Numbers with commas between. Default: the recipe's seed, 0 if it has none.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A YAML file, or the name of one that ships.")] = "small",
    resolution: Annotated[int | None, typer.Option(min=16, help="Pixels a side. Default: the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of a run. Default: the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Of the recipe; METHOD.options.NAME=VALUE of one method."),
    ] = None,
    n_train: Annotated[int | None, typer.Option("--train", min=2, help="Training images at most. [3000]")] = None,
    n_eval: Annotated[int | None, typer.Option("--eval", min=2, help="Held-out images at most. [500]")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with weights of judging networks: Inception, VGG16, MobileNetV2 …")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs side by side, a process of one thread each.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps and images: all methods in half an hour.")] = False,
    allow: Annotated[list[str] | None, typer.Option(help="A further package that a recipe's target may name.")] = None,
) -> None:
    """Train every method on the same data by one recipe, measure all alike; a table, a page, and what is behind them.

    The same command goes on where it was stopped. Exit code 1: finished, but a run broke (its loss was not finite).
    """
    from tavq_plugin.evaluation.compare import compare as run
    from tavq_plugin.evaluation.plan import plan_of
    from tavq_plugin.evaluation.report.tables import markdown

    console = Console()
    with _told(console, f"Finished runs are in {out}"):
        plan = plan_of(
            out=out, data=data, methods=methods, seeds=seeds, recipe=recipe, resolution=resolution, steps=steps,
            overrides=overrides or (), n_train=n_train, n_eval=n_eval, weights=weights, quick=quick,
            allow=allow or (),
        )  # fmt: skip
        with runs_progress(console, len(plan.jobs)) as (report, finished):
            content = run(plan, workers=workers, tell=console.print, report=report, finished=finished)
    console.print(markdown(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/compare.html, compare.md, compare.json, pictures, and a folder for each run")
    if content["failed"]:
        raise typer.Exit(BROKEN)


@app.command()
def convert_checkpoint(
    source: Annotated[Path, typer.Argument(help="A .ckpt, .pt or .pth file.", exists=True, dir_okay=False)],
    out: Annotated[Path | None, typer.Option(help="Name without an ending; default: the file's, beside it.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A further class name, package.Class, to read as a plain record.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite what is there.")] = False,
) -> None:
    """Read an old checkpoint without running what is in it; write safetensors and a JSON of its configuration."""
    from tavq_plugin.io.convert_checkpoint import convert_checkpoint as convert

    console = Console()
    with _told(console, "Nothing was written"):
        written = convert(source, out, allow=allow or (), force=force)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)


@app.command()
def doctor(
    target: Annotated[str, typer.Argument(
        help="file.py:function or module:function giving a host, (host, optimizer) or (host, optimizer, align); "
             "or a YAML with target and params.")],
    captions: Annotated[Path | None, typer.Option(help="Folder with captions.jsonl or same-named .txt files.")] = None,
    taps: Annotated[list[str] | None, typer.Option(help="Module path; give it twice, fine → mid.")] = None,
    quantizer: Annotated[str | None, typer.Option(help="Its module path.")] = None,
    layout: Annotated[str | None, typer.Option(help='How tapped features lie: "b c h w", "b n c", …')] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A further package that a YAML's target may name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Try one training step dry: what was found, where gradient goes, what is missing. Exit code 0 if it would work."""
    import json
    import sys
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from tavq_plugin.cli.doctor import examine, lines
    from tavq_plugin.hosts.instantiate import load_setup

    console = Console(highlight=False)
    with _told(console, "Nothing was changed"), redirect_stdout(sys.stderr):  # hosts may print
        host, optimizer, align = load_setup(target, allow=allow or ())
    with redirect_stdout(sys.stderr):
        report = examine(host, optimizer, align, captions=captions, taps=taps, quantizer=quantizer, layout=layout)
    if as_json:
        print(json.dumps({**asdict(report), "ok": report.ok}, indent=1, ensure_ascii=False))
    else:
        for line in lines(report):
            console.print(line, markup=False)
    raise typer.Exit(0 if report.ok else 1)
