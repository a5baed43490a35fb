"""The `tavq` commands, in the groups of `tavq --help`."""

from __future__ import annotations

from typing import Annotated

import typer

from tavq_plugin.cli import text, use
from tavq_plugin.cli.compare_command import compare
from tavq_plugin.cli.convert_command import convert_checkpoint
from tavq_plugin.cli.demo_command import demo
from tavq_plugin.cli.doctor_command import doctor
from tavq_plugin.cli.evaluate_command import evaluate
from tavq_plugin.cli.explore import explore
from tavq_plugin.cli.store_command import store
from tavq_plugin.cli.tasks import task
from tavq_plugin.cli.train_command import train
from tavq_plugin.cli.tune_command import tune

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

TRY, TEXTS, TRAIN, USE, MIGRATE = "Try", "Texts", "Train and measure", "Use a run", "Migrate"  # titles of the groups


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("tavq-plugin"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """A codebook that speaks language, for any existing VQ image tokenizer.

    Exit codes: 0 done, 1 a negative verdict or something broke, 2 refused, 3 some records were left out, 75 stopped by
    a scheduler (SIGTERM), 130 stopped. A stopped command goes on if you give it again.
    """


COMMANDS = (  # group, command, what to type
    (TRY, doctor, "tavq doctor my_setup.py:build --captions my-images"),
    (TRY, demo, "tavq demo --out tavq-demo"),
    (TEXTS, text.caption, "tavq caption --data my-images --model Qwen/Qwen2.5-VL-3B-Instruct --out captions.jsonl"),
    (TEXTS, text.prepare, "tavq prepare --data my-images --out my-store"),
    (TRAIN, train, "tavq train --data my-images --method tavq --out runs/tavq"),
    (TRAIN, tune, "tavq tune --data my-images --methods tavq,lgvq --out my-tuning"),
    (TRAIN, compare, "tavq compare --data my-images --methods vqgan,tavq --seeds 0,1,2 --out my-comparison"),
    (TRAIN, evaluate, "tavq evaluate runs/vqgan runs/tavq --data my-images --out my-results"),
    (TRAIN, task, "tavq task captioning --run runs/vqgan --run runs/tavq --data my-images --out my-tasks"),
    (USE, use.encode, "tavq encode photos --run runs/tavq --out tokens"),
    (USE, use.decode, "tavq decode tokens --run runs/tavq --out decoded"),
    (USE, use.words, "tavq words runs/tavq --word red --level 2"),
    (USE, use.show, "tavq show runs/tavq scene.png 'A red star lies left of a blue square.' --out shown.png"),
    (USE, explore, "tavq explore runs/tavq --also runs/vqgan --out tavq-page"),
    (USE, use.export, "tavq export runs/tavq --out my-tokenizer"),
    (MIGRATE, convert_checkpoint, "tavq convert-checkpoint last.ckpt"),
)
for group, command, example in COMMANDS:
    app.command(rich_help_panel=group, epilog=f"Example: {example}")(command)
app.add_typer(store, name="store", rich_help_panel=TEXTS, epilog="Example: tavq store verify my-store")
