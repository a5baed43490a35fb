"""`fit` trains a method by a recipe into a folder; it loads a finished run and resumes an interrupted one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.distributed import is_sharded
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import writable
from tavq_plugin.io.state_tree import refuse_unsavable
from tavq_plugin.io.storable import refuse_unstorable
from tavq_plugin.methods.base import Method
from tavq_plugin.moved import old_names
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.replace_finished import finish_replacing
from tavq_plugin.training.run_folder import (
    begin_run,
    finished_summary,
    initial_settings,
    load_finished,
    refuse_foreign_files,
    refuse_other_settings,
    resolved_recipe,
    save_finished,
    try_saving,
)
from tavq_plugin.training.trackers import refuse_missing_tracker, start_tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tavq_plugin.training.loop import TrainingLoop

__getattr__ = old_names(__name__)  # names that moved to other files, or were renamed
BLOCK = 20  # rows; speed is the median of means over so many, because some methods work only in some steps
Progress = Callable[[int, dict[str, float]], None]


class TrainedRun(NamedTuple):
    """A finished run."""

    tokenizer: Tokenizer  #: with averaged weights if the recipe's `ema` is above 0
    method: Method
    #: one row per `log_every` steps: the loss terms and codebook usage of that step, and the mean seconds and plug-in
    #: share since the previous row; every `diagnose_every` steps also diagnostics, such as own_minus_other_1
    history: list[dict[str, float]]
    seconds_per_step: float  #: over the steps with codes: the median of means over `BLOCK` rows
    plugin_share: float  #: 0..1, share of those steps' time; exact on a CPU only, as GPU kernels finish later


def fit(
    method: str,
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    *,
    progress: Progress | None = None,
    allow: Sequence[str] = (),
) -> TrainedRun:
    """Train a method by a recipe on a corpus' training rows, into a folder that then holds the run.

    A finished run with the same settings in this folder is loaded. An interrupted one resumes from its last checkpoint
    and ends as if it had never stopped. The caller's random streams stay as they are. Under `accelerate launch` every
    process makes the same call and trains on its part of each batch.

    The folder receives settings.json, recipe.yaml, checkpoints/ and logs/ during the run, and at its end
    host.safetensors (only the host's state dict), tavq.safetensors, method.safetensors and, last, history.json.

    Args:
        method: A name in `tavq_plugin.methods.METHODS`; it replaces the recipe's.
        recipe: Everything else about the run.
        corpus: Images of the recipe's resolution, with their texts.
        folder: Where the run is written; created if missing.
        progress: Called as `progress(steps_done, row)` after every step, with the latest row that was read: that of
            each `log_every`-th step, and of the first one of the call.
        allow: Further packages that the recipe's targets may come from.

    Raises:
        ValueError: Something cannot be trained or saved, or the folder holds a run with other settings. Raised before
            the first step.
        FileNotFoundError: There is no checkpoint where the recipe's `init` says, and the run is not finished.
        FileExistsError: The folder holds something in the way that we did not make. Raised before the first step.
        FloatingPointError: A loss or a weight is not finite; the message names it.
        OSError: The disk is full.
    """
    require_accelerate()
    from tavq_plugin.training.loop import TrainingLoop

    recipe = replace(recipe, method=method)
    refuse_corpus(corpus, recipe)
    refuse_targets(recipe, allow=allow)
    folder = writable(Path(folder))
    recipe = resolved_recipe(recipe, folder)
    refuse_foreign_files(folder, recipe)
    finish_replacing(folder)
    settings = {**recipe.to_dict(), **initial_settings(folder, recipe), "corpus": fingerprint(corpus)}
    refuse_other_settings(folder, settings)
    summary = finished_summary(folder)
    accelerator = build_accelerator(recipe, folder)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        started = recipe if summary is None else replace(recipe, init="")  # finished weights are loaded below
        loop = TrainingLoop(started, corpus, accelerator, allow=allow)
        try:
            if summary is None:
                summary = _train(loop, settings, folder, progress)
            else:
                loop.finish()
                load_finished(folder, loop.tokenizer, loop.method)
        finally:
            loop.close()
    return trained_run(loop.tokenizer, loop.method, summary)


def trained_run(tokenizer: Tokenizer, method: Method, summary: dict[str, Any]) -> TrainedRun:
    """A finished run, with the figures of its history.json."""
    return TrainedRun(tokenizer, method, *(summary[name] for name in ("history", "seconds_per_step", "plugin_share")))


def require_accelerate() -> None:
    """Raise ImportError, with the command that installs it, if accelerate is missing."""
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise ImportError(f'training needs accelerate ({error}): pip install "tavq-plugin[train]"') from error


def build_accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    """Accelerate's devices and processes, with the recipe's tracker; raises ImportError if a package is missing."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    refuse_missing_tracker(recipe.tracker)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=None if recipe.tracker == "none" else recipe.tracker,
        project_dir=folder,
        # a settling host does not use its codebook, and a method may not use all of its parameters
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _train(loop: TrainingLoop, settings: dict[str, Any], folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Train to the end, from the last checkpoint if there is one; returns what history.json holds."""
    recipe, accelerator = loop.recipe, loop.accelerator
    refuse_unsavable_run(loop)
    checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep)
    history: list[dict[str, float]] = []
    if accelerator.is_main_process:
        begin_run(folder, recipe, settings)
    latest = checkpoints.latest()
    if latest is not None:
        state, history = latest
        loop.load(state)
    elif accelerator.is_main_process and not is_sharded(loop.module):  # gathering weights would need all processes
        try_saving(folder, loop.tokenizer, loop.method)
    accelerator.wait_for_everyone()
    run_steps(loop, checkpoints, history, progress)
    summary = summary_of(history, settled=recipe.settled)
    if facts := loop.method.facts():
        summary["facts"] = facts
    if accelerator.is_main_process:
        save_finished(folder, loop.tokenizer, loop.method, summary)
        checkpoints.clear()
    accelerator.wait_for_everyone()
    return summary


def refuse_unsavable_run(loop: TrainingLoop) -> None:
    """Raise now what saving the run would raise after its last step."""
    refuse_unstorable(loop.tokenizer.host.state_dict(), "the host's state dict")
    refuse_unsavable(loop.module.state_dict())


def run_steps(
    loop: TrainingLoop, checkpoints: Checkpoints, history: list[dict[str, float]], progress: Progress | None
) -> None:
    """Train up to the last step of the loop's phase, with checkpoints, and end training; rows go to `history`.

    Raises FloatingPointError, which names the last good checkpoint, if a loss or a weight is not finite.
    """
    from tavq_plugin.training.diagnostic_figures import with_diagnostics
    from tavq_plugin.training.tracked_pictures import log_pictures

    recipe, accelerator, end = loop.recipe, loop.accelerator, loop.phase.last
    start_tracker(accelerator, recipe)
    times: list[tuple[float, float]] = []  # (seconds, plug-in's seconds) of each step since the last row
    latest: dict[str, float] = {}
    try:
        while loop.number < end:
            done = loop.number + 1
            logged = done % recipe.log_every == 0 or done == end
            row = loop.step(read=logged or not latest)
            times.append((row["seconds"], row["plugin_share"] * row["seconds"]))
            if logged or not latest:
                latest = row
            if logged:
                seconds, plugin = map(sum, zip(*times, strict=True))
                row |= {"seconds": seconds / len(times), "plugin_share": plugin / seconds}
                times.clear()
                latest = row = with_diagnostics(loop, row, history)
                history.append(row)
                loop.module.drift.warn()
                accelerator.log({name: value for name, value in row.items() if name != "step"}, step=loop.number)
                log_pictures(loop, history)
            if progress is not None:
                progress(loop.number, latest)
            if recipe.checkpoint_every and loop.number % recipe.checkpoint_every == 0 and loop.number < end:
                loop.refuse_broken()
                state = loop.state()  # gathers from all processes, so each must call it
                if accelerator.is_main_process:
                    checkpoints.save(loop.number, state, history)
                accelerator.wait_for_everyone()
    except FloatingPointError as error:
        saved = checkpoints.saved()
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no earlier checkpoint"
        raise FloatingPointError(f"{error}; {last}") from None
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    loop.refuse_broken()
    loop.finish()


def refuse_corpus(corpus: Corpus, recipe: Recipe) -> None:
    """Raise ValueError if there are too few images, texts do not match them, or their size is not the recipe's."""
    if corpus.n_train < 2:
        raise ValueError(f"{corpus.name} has {corpus.n_train} training images: at least 2 are needed")
    if corpus.n_train > len(corpus.images) or len(corpus.images) != len(corpus.store):
        raise ValueError(
            f"{corpus.name} has {len(corpus.images)} images, {len(corpus.store)} texts and n_train={corpus.n_train}: "
            "give one text per image, and no more training rows than images"
        )
    side = corpus.images.shape[-1]
    if side != recipe.resolution:
        raise ValueError(
            f"{corpus.name} holds images of {side} px and the recipe says resolution={recipe.resolution}: give "
            f"resolution={side}, or images of {recipe.resolution} px"
        )


def fingerprint(corpus: Corpus) -> dict[str, Any]:
    """What identifies a corpus: its name, its sizes, and a hash of its texts and of 64 of its images."""
    digest = hashlib.sha256(corpus.store.fingerprint.encode())
    for text in corpus.texts:
        digest.update(text.encode() + b"\0")
    rows = torch.linspace(0, len(corpus.images) - 1, min(64, len(corpus.images))).long()
    digest.update(corpus.images[rows].numpy().tobytes())
    numbers = {"images": len(corpus.images), "n_train": corpus.n_train}
    return {"name": corpus.name, **numbers, "sha256": digest.hexdigest()}


def summary_of(history: list[dict[str, float]], *, settled: int) -> dict[str, Any]:
    """What history.json holds: the rows, the speed over the steps with codes (from `settled` on), package versions."""
    rows = [row for row in history if row["step"] >= settled] or history
    seconds = torch.tensor([row["seconds"] for row in rows], dtype=torch.float64)
    plugin = torch.tensor([row["plugin_share"] for row in rows], dtype=torch.float64) * seconds
    blocks = torch.stack([block.mean() for block in seconds.split(BLOCK) if len(block) == min(BLOCK, len(seconds))])
    speed = {"seconds_per_step": blocks.median().item(), "plugin_share": (plugin.sum() / seconds.sum()).item()}
    versions = {name: version(name) for name in ("tavq-plugin", "torch", "accelerate")}
    return {"history": history, **speed, "versions": versions}
