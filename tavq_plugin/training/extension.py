"""`extend`: more steps for a finished run, in the same folder, with a schedule of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.distributed import is_sharded
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import writable
from tavq_plugin.methods.base import Method
from tavq_plugin.training.build import build, is_codebook_computed
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import recipe_of
from tavq_plugin.training.replace_finished import finish_replacing, replace_finished
from tavq_plugin.training.run_folder import (
    PHASES,
    claim_run,
    finished_summary,
    load_finished,
    recipe_settings,
    refuse_foreign_files,
    saved_settings,
    try_saving,
)
from tavq_plugin.training.schedule import Phase
from tavq_plugin.training.trainer import (
    Progress,
    TrainedRun,
    build_accelerator,
    fingerprint,
    refuse_corpus,
    refuse_unsavable_run,
    require_accelerate,
    run_steps,
    summary_of,
    trained_run,
)

Checkpoint = tuple[dict[str, Any], list[dict[str, float]]]


class Extension(NamedTuple):
    """A finished run, and the number of steps that it shall have."""

    recipe: Recipe  # of the run as it is
    settings: dict[str, Any]  # what its settings.json holds
    steps: int  # that it shall have in all

    @property
    def phases(self) -> list[int]:
        """Total steps after the run and after each extension that is finished."""
        return list(self.settings.get(PHASES, [self.recipe.steps]))


def read_extension(folder: Path, steps: int, *, allow: Sequence[str] = ()) -> Extension:
    """The run in a folder that is to have `steps` steps in all.

    Raises ValueError if the folder holds no finished run of `tavq train`, or one with more steps; FileExistsError if
    a file in it that would be overwritten is not ours.
    """
    settings = saved_settings(folder, strict=True)
    if not isinstance(settings, dict):
        raise ValueError(f"{folder} holds no run to extend: train one first, with tavq train --out {folder}")
    if not settings.keys() >= {"method", "host", "corpus"}:
        raise ValueError(f"{folder} was not made by tavq train, so it cannot be extended: give a folder that was")
    above = folder.resolve().parents  # of OUT/METHOD/seedN, and of OUT/equal-time/N-steps/METHOD/seedN
    if (folder / "measured.json").exists() or any((out / "shared.json").exists() for out in (*above[1:2], *above[3:4])):
        raise ValueError(
            f"{folder} belongs to a comparison, whose runs all have the same steps: give tavq compare more --steps and "
            f"another --out, or start a new run from it with --init {folder}"
        )
    recipe, _ = _of_folder(folder)
    refuse_targets(recipe, allow=allow)
    refuse_foreign_files(folder, recipe)
    finish_replacing(folder)
    if finished_summary(folder) is None:
        raise ValueError(
            f"{folder} holds a run that is not finished: give the command that made it again, without --extend, and "
            "extend it when it has ended"
        )
    found = Extension(*_of_folder(folder), steps)
    if steps < found.recipe.steps:
        raise ValueError(
            f"{folder} has {found.recipe.steps:,} steps already: --extend takes the number of steps that the run shall "
            f"have in all, so give more than {found.recipe.steps}"
        )
    return found


def extend(
    folder: Path,
    steps: int,
    corpus: Corpus,
    *,
    progress: Progress | None = None,
    allow: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> TrainedRun:
    """Train a finished run further, until it has `steps` steps in all; a run that has them is only loaded.

    It begins with the finished weights of the host, the added levels and the method, a new Adam, and, if the recipe has
    one, a new discriminator. The learning rate and the method's own schedule (λ or ρ) start anew and cover the new
    steps; the numbering of steps and the order of batches go on. Until the extension ends, the folder holds the run as
    it was. An interrupted extension resumes by the same call, from checkpoints/.

    Args:
        folder: A run that `fit` finished.
        steps: Optimizer steps of the run in all.
        corpus: The same as the run's.
        progress: Called as `progress(steps_done, row)` after every step.
        allow: Further packages that the recipe's targets may come from.
        tell: Called with one line that says which steps follow, and their schedule.

    Raises:
        ValueError: As `read_extension`; or the corpus is another, another extension has begun, or the method keeps the
            codebook in a network that a finished run does not hold (vqct).
        FloatingPointError, OSError: As `fit`; the run as it was stays.
    """
    require_accelerate()
    from tavq_plugin.training.loop import TrainingLoop

    folder = writable(Path(folder))
    asked = read_extension(folder, steps, allow=allow)
    recipe = asked.recipe
    refuse_corpus(corpus, recipe)
    if fingerprint(corpus) != asked.settings["corpus"]:
        raise ValueError(f"{folder} was trained on another corpus than {corpus.name}: extend it on its own data")
    summary = finished_summary(folder)
    assert summary is not None  # read_extension refuses such a run
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        tokenizer, method = _finished_parts(folder, recipe, corpus, allow, to_train=steps > recipe.steps)
        if steps == recipe.steps:
            tell(f"{folder} has {steps:,} steps already: nothing is trained")
            return trained_run(tokenizer, method, summary)
        accelerator = build_accelerator(recipe, folder)
        checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep)
        latest = _checkpoint(checkpoints, asked, folder)
        phase = Phase.extension(recipe.steps, steps)
        loop = TrainingLoop(recipe, corpus, accelerator, allow=allow, phase=phase, built=(tokenizer, method))
        try:
            refuse_unsavable_run(loop)
            history = summary["history"]
            if latest is not None:
                state, history = latest
                loop.load(state)
            tell(describe_extension(asked, loop.number, has_discriminator=loop.adversary is not None))
            accelerator.wait_for_everyone()  # every process has read the folder
            if accelerator.is_main_process:
                claim_run(folder)
                if latest is None:
                    checkpoints.clear()  # left by a kill at the end of the run
                    if not is_sharded(loop.module):
                        try_saving(folder, loop.tokenizer, loop.method)
            run_steps(loop, checkpoints, history, progress)
            phases = [*asked.phases, steps]
            summary = summary_of(history, settled=replace(recipe, steps=phases[0]).settled)
            if accelerator.is_main_process:
                settings = {**asked.settings, "steps": steps, PHASES: phases}
                note = f"Extended: schedules end at steps {', '.join(map(str, phases))}; this recipe alone has one."
                replace_finished(folder, loop.tokenizer, loop.method, settings, summary, note)
                checkpoints.clear()
            accelerator.wait_for_everyone()
        finally:
            loop.close()
    return trained_run(loop.tokenizer, loop.method, summary)


def describe_extension(asked: Extension, done: int, *, has_discriminator: bool) -> str:
    """One line: which steps follow, from which weights, and by which schedule."""
    recipe, optimizer = asked.recipe, asked.recipe.optimizer
    begins = f"resumes after step {done:,} of" if done > recipe.steps else "trains"
    rate = f"rises to {optimizer.learning_rate:g} over {optimizer.warmup} steps" if optimizer.warmup else "is constant"
    if optimizer.schedule == "cosine":
        rate = rate.replace("is constant", f"starts at {optimizer.learning_rate:g}") + (
            f" and falls along half a cosine to 0 at step {asked.steps:,}"
        )
    adversary = ", a new discriminator" if has_discriminator else ""
    return (
        f"{begins} steps {recipe.steps + 1:,} to {asked.steps:,} of {recipe.method}, from the finished weights: a new "
        f"Adam{adversary}; the learning rate {rate}; the method's schedule (λ or ρ) starts anew and covers these steps"
    )


def _of_folder(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and the settings of the run in a folder."""
    settings = saved_settings(folder, strict=True)
    return recipe_of(recipe_settings(settings)), settings


def _finished_parts(
    folder: Path, recipe: Recipe, corpus: Corpus, allow: Sequence[str], *, to_train: bool
) -> tuple[Tokenizer, Method]:
    """The tokenizer and the method with their finished weights; to train them further, or as `fit` returns them."""
    tokenizer, method = build(replace(recipe, init=""), corpus, allow=allow)
    if not to_train:
        method.finish()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer.to(device).eval(), method.to(device).eval()
    elif is_codebook_computed(tokenizer):
        raise ValueError(
            f"{recipe.method} computes the codebook by a network that a finished run does not hold, so {folder} cannot "
            "be extended: train a new run with more steps"
        )
    try:
        load_finished(folder, tokenizer, method)
    except (RuntimeError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"the weights in {folder} do not fit its settings.json ({error}): a file was changed or damaged; train the "
            "run again"
        ) from error
    return tokenizer, method


def _checkpoint(checkpoints: Checkpoints, asked: Extension, folder: Path) -> Checkpoint | None:
    """The latest checkpoint of this extension; None if there is none. Raises ValueError for that of another one."""
    latest = checkpoints.latest()
    last = latest[0].get("last", 0) if latest else 0
    if last <= asked.recipe.steps:
        return None
    if last != asked.steps:
        raise ValueError(
            f"an extension of {folder} to {last:,} steps has begun, and its schedule depends on that number: give "
            f"--extend {last} to go on with it, or delete {checkpoints.folder} to begin another"
        )
    return latest
