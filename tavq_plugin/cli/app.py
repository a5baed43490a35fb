"""The `tavq` commands. Each parses its options, calls the package and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tavq_plugin.cli import text
from tavq_plugin.cli.console import evaluations_progress, report_errors, runs_progress
from tavq_plugin.cli.explore import explore
from tavq_plugin.cli.options import Allow, Data, Init, RecipeFile, TextField, options_given
from tavq_plugin.cli.tasks import task

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(text.caption)
app.command()(text.prepare)
app.add_typer(text.store, name="store")
app.command()(task)
app.command()(explore)

BROKEN = 1  # exit code of a finished comparison in which a run broke


@app.callback()
def main() -> None:
    """A codebook that speaks language, for any existing VQ image tokenizer."""


@app.command()
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
        int | None, typer.Option(min=2, help="At most this many training images. Default: 3000, or 1200 drawn scenes.")
    ] = None,
    n_eval: Annotated[
        int | None,
        typer.Option(min=2, help="At most this many images of the tune split. Default: 500, or 800 drawn scenes."),
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
) -> None:
    """Train a small VQGAN on without alignment, with it, and with shuffled texts; say what the numbers show.

    It replaces its own runs that were made with other settings. It stops at a file that it did not make, and names it.
    """
    from tavq_plugin.cli.demo import run_demo
    from tavq_plugin.cli.demo_settings import demo_settings
    from tavq_plugin.cli.demo_table import tables

    console = Console()
    with report_errors(console, f"Finished runs are in {out}"):
        settings = demo_settings(
            data=data, resolution=resolution, steps=steps, seed=seed, init=init, weight=weight, n_train=n_train,
            n_eval=n_eval,
        )  # fmt: skip
        content = run_demo(settings, out=out, console=console)
    console.print(tables(content))
    console.print(f"written: {out}/demo.json, {out}/reconstructions.png, {out}/words.png, and a folder for each run")
    console.print(f"\n{content['verdict']['sentence']}", markup=False, highlight=False)


@app.command()
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
    allow: Allow = None,
    text_field: TextField = None,
) -> None:
    """Train one tokenizer by one method. On several GPUs: `accelerate launch -m tavq_plugin train …`.

    Give the same command again to resume a stopped run; the result is the same as without the stop. A finished run is
    kept. The command stops at a file that it did not make, and names it.
    """
    from tavq_plugin.cli.train import run_extension, run_train

    console = Console()
    with report_errors(console, f"The latest checkpoint, if there is one, is in {out}/checkpoints"):
        if extend is not None:
            given = options_given(ctx, but=("out", "extend", "allow"))
            run_extension(out=out, steps=extend, given=given, allow=allow or (), console=console)
            return
        run_train(
            out=out, data=data, method=method, recipe=recipe, init=init, overrides=overrides or (), n_train=n_train,
            n_eval=n_eval, allow=allow or (), text_field=text_field, console=console,
        )  # fmt: skip


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="Folder for the runs, compare.json, the tables and the page.")],
    data: Data = None,
    methods: Annotated[str, typer.Option(help="Names of methods, separated by commas, or all.")] = "all",
    seeds: Annotated[
        str | None, typer.Option(help="Numbers, separated by commas. Default: the recipe's seed, or 0 if it has none.")
    ] = None,
    recipe: RecipeFile = "small",
    resolution: Annotated[
        int | None, typer.Option(min=16, help="Width and height in pixels. Default: the recipe's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps per run. Default: the recipe's.")] = None,
    init: Init = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of the recipe, or of one method: METHOD.options.NAME=VALUE.",
        ),
    ] = None,
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
    allow: Allow = None,
    text_field: TextField = None,
) -> None:
    """Train every method on the same data by one recipe, measure all in the same way, and write a table and a page.

    It measures the tune split, because settings are chosen by a comparison; only `tavq evaluate` reads the test split.

    Give the same command again to resume a stopped comparison. Exit code 1: finished, but a run's loss was not finite.
    """
    from tavq_plugin.evaluation.compare import compare as run
    from tavq_plugin.evaluation.plan import plan_of
    from tavq_plugin.evaluation.report.markdown import terminal

    console = Console()
    with report_errors(console, f"Finished runs are in {out}"):
        plan = plan_of(
            out=out, data=data, methods=methods, seeds=seeds, recipe=recipe, resolution=resolution, steps=steps,
            init=init, overrides=overrides or (), n_train=n_train, n_eval=n_eval, weights=weights, quick=quick,
            equal_time=equal_time, allow=allow or (), text_field=text_field,
        )  # fmt: skip
        with runs_progress(console, len(plan.jobs)) as (report, finished):
            content = run(plan, workers=workers, tell=console.print, report=report, finished=finished)
    console.print(terminal(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/compare.html, compare.md, compare.json, pictures, and a folder for each run")
    if content["failed"]:
        raise typer.Exit(BROKEN)


@app.command()
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
) -> None:  # fmt: skip
    """Measure tokenizers of your own training loop beside finished runs, without training anything.

    All get the same probes, floors and chance. This is the only command that can read the test split.

    Give the same command again to resume it, or to see its results. Exit code 1: finished, but a tokenizer failed.
    """
    from tavq_plugin.evaluation.report.markdown import terminal
    from tavq_plugin.evaluation.sources.evaluate_sources import evaluate_sources

    console = Console()
    with (
        report_errors(console, f"Finished results are in {out}"),
        evaluations_progress(console) as (started, finished),
    ):
        content = evaluate_sources(
            sources, out=out, data=data, split=split, resolution=resolution, n_train=n_train, n_eval=n_eval,
            weights=weights, allow=allow or (), any_data=any_data, tell=console.print, started=started,
            finished=finished,
        )  # fmt: skip
    console.print(terminal(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/evaluate.html, evaluate.md, evaluate.json and pictures")
    if content["failed"]:
        raise typer.Exit(BROKEN)


@app.command()
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
) -> None:
    """Read an old checkpoint without running its code; write safetensors, and its configuration as JSON."""
    from tavq_plugin.io.convert_checkpoint import convert_checkpoint as convert

    console = Console()
    with report_errors(console, "Nothing was written"):
        written = convert(source, out, allow=allow or (), force=force, max_growth=max_growth, max_values=max_values)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)


@app.command()
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
    as_json: Annotated[bool, typer.Option("--json", help="Print only the report, as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback if the host cannot be built.")] = False,
) -> None:  # fmt: skip
    """Try one training step, write no file, and report what was found and what is missing.

    Exit code 0: a training step would work. 1: it would not. 2: the target could not be built.
    """
    import json
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
    with report_errors(console, "Nothing was written"), redirect_stdout(sys.stderr):  # hosts may print
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
        print(json.dumps({"ok": False, "not_built": built}, indent=1, ensure_ascii=False))
    elif built:
        console.print(built, markup=False, soft_wrap=True)
    elif as_json:
        print(json.dumps({**asdict(report), "ok": report.ok}, indent=1, ensure_ascii=False))
    else:
        for line in lines(report):
            console.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(2 if built else 0 if report.ok else 1)
