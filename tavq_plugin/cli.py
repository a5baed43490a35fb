"""The `tavq` command; thin."""

from __future__ import annotations

from collections.abc import Iterator
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
    n_train: Annotated[int, typer.Option(min=2, help="Training images at most.")] = 3000,
    n_eval: Annotated[int, typer.Option(min=2, help="Held-out images at most.")] = 500,
    weight: Annotated[
        float | None,
        typer.Option(min=0.0, help="λ of the alignment at the start; it falls to 0. Default: .3, on drawn scenes .03."),
    ] = None,
) -> None:
    """Train a small VQGAN without alignment, with it, and with shuffled texts; print one table."""
    from tavq_plugin.demo import SCENES_WEIGHT, run_demo, table
    from tavq_plugin.settings import Training

    console = Console()
    with _told(console, f"Finished runs are in {out}"):
        if weight is None:  # a drawn scene has 16 codes and a run few steps: a tenth of the weight
            weight = SCENES_WEIGHT if data is None else Training.weight
        training = Training(steps=steps, seed=seed, weight=weight)
        content = run_demo(
            data=data, resolution=resolution, out=out, training=training, n_train=n_train, n_eval=n_eval,
            console=console,
        )  # fmt: skip
    console.print(table(content))
    console.print(f"written: {out}/demo.json, {out}/reconstructions.png, {out}/words.png, and a folder for each run")


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
    check_images: Annotated[bool, typer.Option(help="Decode every image too, and leave broken ones out.")] = False,
) -> None:
    """Split and encode the texts of a folder or file into a store; go on where a former run stopped.

    Exit code 3: finished, but some records were left out; they are in OUT/rejected.jsonl.
    """
    from tavq_plugin.text import prepare as preparing

    console = Console()
    with _told(console, f"Finished shards are in {out}"):
        result = preparing.prepare(
            data, out, preparing.encoder_of(encoder, revision, pooling, dtype, device),
            shard_size=shard_size, part=preparing.part_of(shard), check_images=check_images,
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
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        raise typer.Exit(2) from None
