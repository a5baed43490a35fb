"""`tavq train`: read the recipe and the corpus, train with a progress bar, print one line at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from tavq_plugin.data.corpus import load_or_build_corpus
from tavq_plugin.io.atomic import writable
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.training.build import describe_start
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.recipe_yaml import read_recipe, refuse_given_twice
from tavq_plugin.training.run_folder import finished_summary, refuse_foreign_files
from tavq_plugin.training.trainer import TrainedRun, fit

SCENES = 2000  # training images that are drawn if no data are given
ALL = 10**9  # images: more than any folder has


def run_train(
    *,
    out: Path,
    data: Path | None,
    method: str | None,
    recipe: str,
    init: str | None = None,
    overrides: Sequence[str],
    n_train: int | None,
    n_eval: int,
    allow: Sequence[str],
    console: Console,
) -> TrainedRun:
    """Train a run and print its figures. Under a launcher, the main process reads first and only it prints."""
    from accelerate import PartialState

    refuse_given_twice(overrides, method=method, init=init)
    settings = read_recipe(recipe, overrides)
    settings = replace(settings, method=method or settings.method, init=settings.init if init is None else init)
    refuse_targets(settings, allow=allow)
    state = PartialState(cpu=not torch.cuda.is_available())  # as in `fit`
    console.quiet = not state.is_main_process
    writable(out)
    refuse_foreign_files(out, settings)
    if settings.init and finished_summary(out) is None:
        console.print(describe_start(settings, allow=allow), markup=False, highlight=False, soft_wrap=True)
    with state.main_process_first():
        corpus, _ = load_or_build_corpus(
            out / "data", data, settings.resolution, n_train=n_train or (SCENES if data is None else ALL),
            n_eval=n_eval, tell=console.print,
        )  # fmt: skip
    with progress_bar(console, detail="loss") as progress:
        task = progress.add_task(settings.method, total=settings.steps, loss="")

        def report(done: int, row: dict[str, float]) -> None:
            progress.update(task, completed=done, loss=f"pixel {row['pixel']:.3f}")

        run = fit(settings.method, settings, corpus, out, progress=report, allow=allow)
        progress.update(task, completed=settings.steps)
    console.print(
        f"{out}: {settings.method}, {settings.steps:,} steps of {1000 * run.seconds_per_step:.0f} ms, of which the "
        f"plug-in takes {100 * run.plugin_share:.1f} %; pixel loss {run.history[-1]['pixel']:.4f}",
        highlight=False,
    )
    return run
