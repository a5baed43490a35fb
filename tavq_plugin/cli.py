"""The `tavq` command; thin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
store_app = typer.Typer(no_args_is_help=True, help="Look after a prepared text store.")
app.add_typer(store_app, name="store")

REJECTED = 3  # exit code of a run that went through and left something out
FAULTY = 1  # exit code of `store verify` where something is to be made again


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
    """Train a small VQGAN without alignment, with it, and with shuffled texts; print one table."""
    from tavq_plugin.demo import SCENES, SCENES_WEIGHT, run_demo, table
    from tavq_plugin.settings import Training

    console = Console()
    with _told(console, f"Finished runs are in {out}"):
        if weight is None:  # a run on drawn scenes has few steps: a tenth of the weight
            weight = SCENES_WEIGHT if data is None else Training.weight
        training = Training(steps=steps, seed=seed, weight=weight)
        content = run_demo(
            data=data, resolution=resolution, out=out, training=training, n_eval=n_eval,
            n_train=n_train or (SCENES if data is None else 3000),
            console=console,
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
    """
    from tavq_plugin.training.command import run_train

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
    seeds: Annotated[str, typer.Option(help="Numbers with commas between.")] = "0",
    recipe: Annotated[str | None, typer.Option(help="A YAML file, or the name of one that ships.")] = None,
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
) -> None:
    """Train every method on the same data by one recipe, measure all alike; a table, a page, and what is behind them.

    The same command goes on where it was stopped. Exit code 1: finished, but a run broke (its loss was not finite).
    """
    from tavq_plugin.compare import compare as run
    from tavq_plugin.plan import plan_of
    from tavq_plugin.report.tables import markdown

    console = Console()
    with _told(console, f"Finished runs are in {out}"):
        plan = plan_of(
            out=out, data=data, methods=methods, seeds=seeds, recipe=recipe, resolution=resolution, steps=steps,
            overrides=overrides or (), n_train=n_train, n_eval=n_eval, weights=weights, quick=quick,
        )  # fmt: skip
        with _runs(console, len(plan.jobs)) as (report, finished):
            content = run(plan, workers=workers, tell=console.print, report=report, finished=finished)
    console.print(markdown(content), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/compare.html, compare.md, compare.json, pictures, and a folder for each run")
    if content["failed"]:
        raise typer.Exit(FAULTY)


@app.command()
def caption(
    data: Annotated[Path, typer.Option(help="Images: a folder or file as for prepare.")],
    out: Annotated[Path, typer.Option(help="The file to write, .jsonl or .parquet.")],
    model: Annotated[str, typer.Option(help="Image-text-to-text model, a folder or a hub name; or the server's.")],
    revision: Annotated[str | None, typer.Option(help="Of the model; kept with every text.")] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible server, as http://localhost:8000/v1.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask; {captions} marks the place of captions.")] = None,
    with_captions: Annotated[bool, typer.Option(help="Give an image's own captions to the model.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images at once; with a server, between writes.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a text.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the likeliest text.")] = 0.0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that fails.")] = 4,
) -> None:
    """Write a long text for every image, with a model here or on a server; go on where a former run stopped.

    Exit code 3: finished, but some images got no text; they are in rejected.jsonl beside OUT.
    """
    from tavq_plugin.text import caption as captioning

    console = Console()
    options = {"revision": revision, "max_new_tokens": max_new_tokens, "temperature": temperature}
    with _told(console, f"The texts so far are in {out}"):
        if server is None:
            from tavq_plugin.text.vlm import LocalCaptioner

            captioner = LocalCaptioner(model, dtype=dtype, device=device, **options)
        else:
            from tavq_plugin.text.server import ServerCaptioner

            captioner = ServerCaptioner(
                server, model, concurrency=concurrency, timeout=timeout, retries=retries, **options
            )
            batch = max(batch, 2 * concurrency)
        done = captioning.caption(
            data, out, captioner, prompt=prompt or captioning.PROMPT, with_captions=with_captions, batch=batch
        )
    console.print(
        f"{out}: {done.written:,} texts written now, {done.there:,} before; {done.retried:,} asked for twice, "
        f"{done.flagged:,} of them flagged"
    )
    _rejected(console, done.rejected, out.with_name("rejected.jsonl"))


@app.command()
def prepare(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder (captions.jsonl, images with .txt, CUB, CelebA-HQ, COCO, .tar), or a .jsonl, .csv, .parquet "
            "or .tar file."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    shard_size: Annotated[int, typer.Option(min=1, help="Texts a shard.")] = 8192,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only every N-th shard from the I-th (0 to N-1).")] = "0/1",
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray; 'local' starts one on this machine.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on Ray.")] = 2,
    encoder: Annotated[
        str | None, typer.Option(help="Text model, a folder or a hub name; default: MiniLM of the extra 'offline'.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a text model from the hub.")] = None,
    pooling: Annotated[str, typer.Option(help="mean, cls or pooler.")] = "mean",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, while encoding.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")] = None,
    language: Annotated[str, typer.Option(help="en, de, nl; of zh and ja only sentences without --segmenter.")] = "en",
    segmenter: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Cuts zh and ja into words, as jieba:lcut.")
    ] = None,
    spacy: Annotated[str | None, typer.Option(help="A spaCy model that tags instead, a name or a folder.")] = None,
    stop: Annotated[Path | None, typer.Option(help="File of words and phrases to leave out, one a line.")] = None,
    check_images: Annotated[bool, typer.Option(help="Decode every image too, and leave broken ones out.")] = False,
) -> None:
    """Split and encode the texts of a folder or file into a store; go on where a former run stopped.

    Exit code 3: finished, but some records were left out; they are in OUT/rejected.jsonl.
    """
    from tavq_plugin.text import Splitter
    from tavq_plugin.text import prepare as preparing

    console = Console()
    with _told(console, f"Finished shards are in {out}"):
        left_out = stop.read_text(encoding="utf-8").splitlines() if stop else ()
        splitter = Splitter(language=language, spacy=spacy, segmenter=segmenter, stop=frozenset(left_out))
        if missing := [name for name in ("word", "phrase") if name not in splitter.supported]:
            console.print(f"{language}: no {' and no '.join(missing)} units, only {', '.join(splitter.supported)}")
        result = preparing.prepare(
            data, out, preparing.encoder_of(encoder, revision, pooling, dtype, device),
            splitter=splitter, shard_size=shard_size, part=preparing.part_of(shard), check_images=check_images,
            ray="" if ray == "local" else ray, workers=workers,
        )  # fmt: skip
    state = "finished" if result.finished else "other parts are still to come"
    console.print(f"{out}: {result.texts:,} texts in {result.shards} shards, {result.made} made now; {state}")
    _rejected(console, result.rejected, out / "rejected.jsonl")


@store_app.command()
def verify(store: Annotated[Path, typer.Argument(help="Folder of the store.")]) -> None:
    """Read a whole store and say which of its shards to make again; exit code 1 where there is one."""
    from tavq_plugin.text.manifest import verify as faults_of

    console, faulty = Console(), False
    with _told(console, "Nothing was changed"):
        for fault in faults_of(store):
            faulty = True
            console.print(f"{fault.path}: {fault.reason}", highlight=False, soft_wrap=True)
    if faulty:
        console.print("Delete the named shards and run the same tavq prepare again: it makes only what is missing.")
        raise typer.Exit(FAULTY)
    console.print(f"{store}: whole")


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
    from tavq_plugin.convert import convert_checkpoint as convert

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

    from tavq_plugin.doctor import examine, lines
    from tavq_plugin.target import load

    console = Console(highlight=False)
    with _told(console, "Nothing was changed"), redirect_stdout(sys.stderr):  # hosts may print
        host, optimizer, align = load(target, allow=allow or ())
    with redirect_stdout(sys.stderr):
        report = examine(host, optimizer, align, captions=captions, taps=taps, quantizer=quantizer, layout=layout)
    if as_json:
        print(json.dumps({**asdict(report), "ok": report.ok}, indent=1, ensure_ascii=False))
    else:
        for line in lines(report):
            console.print(line, markup=False)
    raise typer.Exit(0 if report.ok else 1)


@contextmanager
def _runs(console: Console, number: int) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """Progress bars over runs and, below, over the steps of those that train."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        whole, bars = progress.add_task("runs", total=number), {}

        def report(name: str, done: int, steps: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=steps)
            progress.update(bars[name], completed=done)

        def finished(name: str) -> None:
            progress.advance(whole)
            if name in bars:
                progress.remove_task(bars.pop(name))

        yield report, finished


def _rejected(console: Console, number: int, file: Path) -> None:
    if number:
        console.print(f"{number:,} records left out, with their place and reason in {file}")
        raise typer.Exit(REJECTED)


@contextmanager
def _told(console: Console, kept: str) -> Iterator[None]:
    """Errors that a user can mend, as one line and exit code 2; Ctrl-C as 130, with what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nStopped. {kept}; the same command goes on from there.")
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError, AttributeError, FloatingPointError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        raise typer.Exit(2) from None
