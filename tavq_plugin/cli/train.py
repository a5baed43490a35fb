"""`tavq train`: read the recipe and the corpus, train with a progress bar, print one line at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from tavq_plugin.data.corpus import load_corpus, load_or_build_corpus
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.io.atomic import writable
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.training.build import describe_start
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.extension import extend, read_extension
from tavq_plugin.training.recipe_yaml import read_recipe, refuse_given_twice
from tavq_plugin.training.run_folder import finished_summary, refuse_foreign_files, resolved_recipe
from tavq_plugin.training.trackers import refuse_missing_tracker
from tavq_plugin.training.trainer import Progress, TrainedRun, fit

SCENES = 2000  # training images that are drawn if no data are given
ALL = 10**9  # images: more than any folder has


def run_train(
    *,
    out: Path,
    data: Path | None,
    method: str | None,
    recipe: str,
    init: str | None = None,
    tracker: str | None = None,
    overrides: Sequence[str],
    n_train: int | None,
    n_eval: int,
    allow: Sequence[str],
    read: ReadSettings | None = None,
    console: Console,
) -> TrainedRun:
    """Train a run and print its figures. Under a launcher, the main process reads first and only it prints."""
    from accelerate import PartialState

    refuse_given_twice(overrides, method=method, init=init, tracker=tracker)
    chosen = [f"{name}={value}" for name, value in (("method", method), ("tracker", tracker)) if value]
    settings = read_recipe(recipe, [*overrides, *chosen])
    if init is not None:
        settings = replace(settings, init=init)
    refuse_targets(settings, allow=allow)
    refuse_missing_tracker(settings.tracker)
    state = PartialState(cpu=not torch.cuda.is_available())  # as in `fit`
    console.quiet = not state.is_main_process
    writable(out)
    settings = resolved_recipe(settings, out)
    refuse_foreign_files(out, settings)
    if settings.init and finished_summary(out) is None:
        console.print(describe_start(settings, allow=allow), markup=False, highlight=False, soft_wrap=True)
    with state.main_process_first():
        corpus, _ = load_or_build_corpus(
            out / "data", data, settings.resolution, n_train=n_train or (SCENES if data is None else ALL),
            n_eval=n_eval, tell=console.print, settings=read,
        )  # fmt: skip
    with _steps_shown(console, settings.method, settings.steps) as report:
        run = fit(settings.method, settings, corpus, out, progress=report, allow=allow)
    _print_figures(console, out, settings.method, settings.steps, run)
    return run


def run_extension(*, out: Path, steps: int, given: Sequence[str], allow: Sequence[str], console: Console) -> TrainedRun:
    """Train a finished run further, until it has `steps` steps in all, and print its figures.

    Raises ValueError if other options are `given`, as the run's own settings hold.
    """
    from accelerate import PartialState

    if given:
        raise ValueError(
            f"--extend goes on with the data and settings of the run in {out}: leave out {', '.join(given)}; for other "
            f"settings, start a new run with --init {out}"
        )
    console.quiet = not PartialState(cpu=not torch.cuda.is_available()).is_main_process
    method = read_extension(out, steps, allow=allow).recipe.method
    if not (out / "data" / "corpus.json").exists():
        raise FileNotFoundError(
            f"{out}/data, the images and texts that the run was trained on, is gone: put it back to extend the run"
        )
    corpus = load_corpus(out / "data")
    with _steps_shown(console, method, steps) as report:
        run = extend(
            out, steps, corpus, progress=report, allow=allow,
            tell=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )  # fmt: skip
    _print_figures(console, out, method, steps, run)
    return run


@contextmanager
def _steps_shown(console: Console, method: str, steps: int) -> Iterator[Progress]:
    """A progress bar over steps, full at the end; gives the function to report them with."""
    with progress_bar(console, detail="loss") as progress:
        task = progress.add_task(method, total=steps, loss="")

        def report(done: int, row: dict[str, float]) -> None:
            progress.update(task, completed=done, loss=f"pixel {row['pixel']:.3f}")

        yield report
        progress.update(task, completed=steps)


def _print_figures(console: Console, out: Path, method: str, steps: int, run: TrainedRun) -> None:
    """Print the speed and the last pixel loss of a run, in one line."""
    console.print(
        f"{out}: {method}, {steps:,} steps of {1000 * run.seconds_per_step:.0f} ms, of which the "
        f"plug-in takes {100 * run.plugin_share:.1f} %; pixel loss {run.history[-1]['pixel']:.4f}",
        highlight=False,
    )
