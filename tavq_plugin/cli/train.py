"""What `tavq train` does: recipe and corpus in, a run with its progress, a line at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tavq_plugin.data.corpus import load_or_build_corpus
from tavq_plugin.io.atomic import writable
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.recipe_yaml import read_recipe, recipe_of, refuse_given_twice
from tavq_plugin.training.trainer import Fitted, fit, refuse_unlike_run

SCENES = 2000  # that train
ALL = 10**9


def run_train(
    *,
    out: Path,
    data: Path | None,
    method: str | None,
    recipe: str,
    overrides: Sequence[str],
    n_train: int | None,
    n_eval: int,
    allow: Sequence[str],
    console: Console,
) -> Fitted:
    """Read, train and say what came of it; under a launcher the first process reads, and alone speaks."""
    from accelerate import PartialState

    refuse_given_twice(overrides, method=method)
    settings = read_recipe(recipe, overrides)
    refuse_targets(settings, allow=allow)
    state = PartialState(cpu=not torch.cuda.is_available())  # as `fit` has it
    console.quiet = not state.is_main_process
    writable(out)
    name = method or settings.method
    refuse_unlike_run(out, recipe_of({**settings.to_dict(), "method": name}))
    with state.main_process_first():
        corpus, _ = load_or_build_corpus(
            out / "data", data, settings.resolution, n_train=n_train or (SCENES if data is None else ALL),
            n_eval=n_eval, tell=console.print,
        )  # fmt: skip
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}")
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(name, total=settings.steps, loss="")

        def report(done: int, row: dict[str, float]) -> None:
            progress.update(task, completed=done, loss=f"pixel {row['pixel']:.3f}")

        fitted = fit(name, settings, corpus, out, progress=report, allow=allow)
        progress.update(task, completed=settings.steps)
    console.print(
        f"{out}: {name}, {settings.steps:,} steps of {1000 * fitted.seconds_per_step:.0f} ms, the plug-in "
        f"{100 * fitted.plugin_share:.1f} % of them; pixel loss {fitted.history[-1]['pixel']:.4f}",
        highlight=False,
    )
    return fitted
