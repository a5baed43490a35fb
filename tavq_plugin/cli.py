"""The `tavq` command; thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tavq_plugin.console import told as _told
from tavq_plugin.text import commands as text

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(text.caption)
app.command()(text.prepare)
app.add_typer(text.store, name="store")


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
