"""`fit`: one method trained by one recipe into one folder; finished runs are loaded, interrupted ones resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json, save_text, writable
from tavq_plugin.io.ownership import SAFETENSORS_TEMPORARY, claim, fresh_folder, refuse_strangers, refuse_taken, remove
from tavq_plugin.io.state_tree import load_tree, refuse_unsavable, save_tree
from tavq_plugin.io.storable import refuse_unstorable
from tavq_plugin.methods.base import Method
from tavq_plugin.moved import current_settings
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.checkpoint import MAKER, Checkpoints
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import recipe_of
from tavq_plugin.training.run_folder import TRAINED_FILES, load_run, save_weights

if TYPE_CHECKING:
    from tavq_plugin.training.loop import Loop

BLOCK = 20  # rows, whose steps differ where a method does not work in each
FREE = ("checkpoint_every", "keep", "tracker")  # settings that change nothing about what is learned
NAMES = (*TRAINED_FILES, "checkpoints/", ".final.partial/")
"""What a run writes into its folder, and replaces there."""
PARTIAL_FILES = (*TRAINED_FILES, SAFETENSORS_TEMPORARY)
RECIPE_HEAD = "# Written by tavq train, which may overwrite it: keep your own recipes elsewhere.\n"
Progress = Callable[[int, dict[str, float]], None]


class Fitted(NamedTuple):
    """A finished run."""

    tokenizer: Tokenizer  # the averaged weights where the recipe averages
    method: Method
    # a row each `log_every` steps: the terms of that step's loss, usage; mean seconds and the plug-in's share since the
    # row before
    history: list[dict[str, float]]
    seconds_per_step: float  # of the steps with codes: the median of `BLOCK` rows' means
    plugin_share: float  # 0..1 of those steps' time, on a CPU; a GPU's kernels run behind the clock


def fit(
    method: str,
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    *,
    progress: Progress | None = None,
    allow: Sequence[str] = (),
) -> Fitted:
    """Train a method by a recipe on a corpus' training rows; the folder then holds the run.

    A run that was finished here with the same settings is loaded, and one that was interrupted goes on from its last
    checkpoint to what it would have been. `progress(steps done, row)` is called after every step; `allow` are further
    packages that the recipe's targets may name. The caller's random streams stay where they are. Under `accelerate
    launch` every process calls it alike and trains its part of the same batches.

    Written: settings.json, recipe.yaml, host.safetensors (the host's state dict, strictly), tavq.safetensors,
    method.safetensors, history.json last; checkpoints/ and logs/ on the way.

    Raises ValueError, before the first step, for what cannot be trained or saved and where the folder holds a run of
    other settings; FileExistsError, before training, where something that we did not make is in the way;
    FloatingPointError where a loss is not finite, naming the term; OSError where the disk is full.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise ImportError(f'training needs accelerate ({error}): pip install "tavq-plugin[train]"') from error
    from tavq_plugin.training.loop import Loop

    recipe = recipe_of({**recipe.to_dict(), "method": method})
    refuse_corpus(corpus, recipe)
    refuse_targets(recipe, allow=allow)
    folder = writable(Path(folder))
    refuse_unlike_run(folder, recipe)
    settings = {**recipe.to_dict(), "corpus": fingerprint(corpus)}
    refuse_other_run(folder, settings)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=None if recipe.tracker == "none" else _tracker(recipe.tracker),
        project_dir=folder,
        # a settling host leaves its codebook unused, and a method may leave out a part
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        loop = Loop(recipe, corpus, accelerator, allow=allow)
        try:
            done = read_json(folder / "history.json")
            if done is not None:
                _load_finished(loop, folder)
            else:
                done = _train(loop, settings, folder, progress)
        finally:
            loop.close()
    return Fitted(loop.tokenizer, loop.method, done["history"], done["seconds_per_step"], done["plugin_share"])


def _train(loop: Loop, settings: dict[str, Any], folder: Path, progress: Progress | None) -> dict[str, Any]:
    """From the last checkpoint, or the start, to the end; -> what history.json holds."""
    recipe, accelerator = loop.recipe, loop.accelerator
    refuse_unstorable(loop.tokenizer.host.state_dict(), "the host's state dict")  # now, not after the last step
    refuse_unsavable(loop.module.state_dict())
    checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep)
    history: list[dict[str, float]] = []
    if accelerator.is_main_process:
        claim(folder, NAMES, MAKER, former=_former(folder))
        _save_recipe(folder / "recipe.yaml", recipe)
        save_json(folder / "settings.json", settings)
    kept = checkpoints.latest()
    if kept is not None:
        state, history = kept
        loop.load(state)
    accelerator.wait_for_everyone()
    if recipe.tracker != "none":
        accelerator.init_trackers("logs", config=_flat(recipe.to_dict()))
    times: list[tuple[float, float]] = []  # of the steps since the last row
    try:
        while loop.number < recipe.steps:
            row = loop.step()
            times.append((row["seconds"], row["plugin_share"] * row["seconds"]))
            logged = loop.number % recipe.log_every == 0 or loop.number == recipe.steps
            if logged:
                seconds, plugin = map(sum, zip(*times, strict=True))
                row |= {"seconds": seconds / len(times), "plugin_share": plugin / seconds}
                times.clear()
                history.append(row)
                accelerator.log({name: value for name, value in row.items() if name != "step"}, step=loop.number)
            if progress is not None:
                progress(loop.number, row)
            if recipe.checkpoint_every and loop.number % recipe.checkpoint_every == 0 and loop.number < recipe.steps:
                loop.refuse_broken()
                state = loop.state()  # of all processes, so that each takes part
                if accelerator.is_main_process:
                    checkpoints.save(loop.number, state, history)
                accelerator.wait_for_everyone()
    except FloatingPointError as error:
        there = checkpoints.there()
        kept = f"the last good checkpoint is {there[-1]}" if there else "there was no checkpoint before"
        raise FloatingPointError(f"{error}; {kept}") from None
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    loop.refuse_broken()
    loop.finish()
    done = {"history": history, **_speed(history, recipe), "versions": _versions()}
    if accelerator.is_main_process:
        _save_finished(loop, done, folder)
        checkpoints.clear()
    accelerator.wait_for_everyone()
    return done


def refuse_corpus(corpus: Corpus, recipe: Recipe) -> None:
    """ValueError where there is nothing to learn from, or images are of another size than the recipe's."""
    if corpus.n_train < 2:
        raise ValueError(f"{corpus.name} has {corpus.n_train} training images: at least 2 are needed")
    if corpus.n_train > len(corpus.images) or len(corpus.images) != len(corpus.store):
        raise ValueError(
            f"{corpus.name} has {len(corpus.images)} images, {len(corpus.store)} texts and n_train={corpus.n_train}: "
            "give one text an image, and no more training rows than images"
        )
    side = corpus.images.shape[-1]
    if side != recipe.resolution:
        raise ValueError(f"{corpus.name} holds images of {side} px and the recipe says resolution={recipe.resolution}")


def fingerprint(corpus: Corpus) -> dict[str, Any]:
    """What tells one corpus from another: its numbers, and a hash of its texts and of 64 of its images."""
    digest = hashlib.sha256(corpus.store.fingerprint.encode())
    for text in corpus.texts:
        digest.update(text.encode() + b"\0")
    rows = torch.linspace(0, len(corpus.images) - 1, min(64, len(corpus.images))).long()
    digest.update(corpus.images[rows].numpy().tobytes())
    numbers = {"images": len(corpus.images), "n_train": corpus.n_train}
    return {"name": corpus.name, **numbers, "sha256": digest.hexdigest()}


def refuse_unlike_run(folder: Path, recipe: Recipe) -> None:
    """FileExistsError, naming it, where something that a run would overwrite or remove in its folder is not ours."""
    refuse_taken(folder, NAMES, MAKER, former=[*_former(folder), "recipe.yaml"])
    Checkpoints(folder / "checkpoints").refuse_taken()
    refuse_strangers(folder / ".final.partial", former=PARTIAL_FILES)
    path = folder / "recipe.yaml"
    if os.path.lexists(path) and not _is_recipe_of_ours(path, recipe):
        raise FileExistsError(
            f"{path} is in the way and was not made by {MAKER}: give another --out, or move it; a recipe of your own "
            f"is read from anywhere with --recipe"
        )


def _former(folder: Path) -> tuple[str, ...]:
    """What a run left in its folder before there were markers; checkpoints and recipe.yaml are looked at apart."""
    kept = read_json(folder / "settings.json", strict=False)
    run = isinstance(kept, dict) and {"method", "host", "corpus"} <= kept.keys()
    return (*(TRAINED_FILES if run else ()), "recipe.yaml", "checkpoints/", ".final.partial/")


def _is_recipe_of_ours(path: Path, recipe: Recipe) -> bool:
    """Whether a recipe.yaml says that we wrote it, or holds what its run's settings.json or this run holds."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    kept = read_json(path.with_name("settings.json"), strict=False)
    former = {name: value for name, value in kept.items() if name != "corpus"} if isinstance(kept, dict) else None
    return text.startswith(RECIPE_HEAD) or content in (former, json.loads(json.dumps(recipe.to_dict())))


def refuse_other_run(folder: Path, settings: dict[str, Any]) -> None:
    """ValueError where the folder holds a run whose settings are not these; what is learned must be the same."""
    kept = current_settings(read_json(folder / "settings.json"))
    if kept is None:
        return
    ours, theirs = _flat(settings), _flat(kept)
    differing = [
        name for name in sorted(ours.keys() | theirs.keys()) if name not in FREE and ours.get(name) != theirs.get(name)
    ]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder} holds a run with {name}={theirs.get(name)!r}, and this one has {ours.get(name)!r}"
            f"{f' ({len(differing)} settings differ)' if differing[1:] else ''}: give another folder, or delete it"
        )


def _save_finished(loop: Loop, done: dict[str, Any], folder: Path) -> None:
    """Each file whole or not there, history.json last: its presence says that the run is finished."""
    partial = folder / ".final.partial"
    try:
        fresh_folder(partial, TRAINED_FILES, MAKER, former=PARTIAL_FILES)
        save_weights(partial, loop.tokenizer, None)
        save_tree(partial / "method.safetensors", loop.method.state_dict())
        for path in sorted(partial.glob("*.safetensors")):
            path.replace(folder / path.name)
        save_json(folder / "history.json", done)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the finished run could not be written in {folder} ({error}): free some space and run the same command "
            "again, it goes on from the last checkpoint"
        ) from error
    finally:
        remove(partial)


def _load_finished(loop: Loop, folder: Path) -> None:
    loop.finish()
    load_run(folder, loop.tokenizer, None)
    loop.method.load_state_dict(load_tree(folder / "method.safetensors"))


def _speed(history: list[dict[str, float]], recipe: Recipe) -> dict[str, float]:
    rows = [row for row in history if row["step"] >= recipe.settled] or history
    seconds = torch.tensor([row["seconds"] for row in rows], dtype=torch.float64)
    plugin = torch.tensor([row["plugin_share"] for row in rows], dtype=torch.float64) * seconds
    blocks = torch.stack([block.mean() for block in seconds.split(BLOCK) if len(block) == min(BLOCK, len(seconds))])
    return {"seconds_per_step": blocks.median().item(), "plugin_share": (plugin.sum() / seconds.sum()).item()}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("tavq-plugin", "torch", "accelerate")}


def _tracker(name: str) -> str:
    try:
        __import__(name)
    except ImportError as error:
        mend = 'pip install "tavq-plugin[train]"' if name == "tensorboard" else f"pip install {name}"
        raise ImportError(f"tracker={name} needs its package ({error}): {mend}, or --set tracker=none") from error
    return name


def _flat(settings: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, each a number or a string."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


def _save_recipe(path: Path, recipe: Recipe) -> None:
    """Write the recipe under a line that says so; a file that holds it already stays, with its comments."""
    import yaml

    content = recipe.to_dict()
    if path.exists() and yaml.safe_load(path.read_text(encoding="utf-8")) == json.loads(json.dumps(content)):
        return
    save_text(path, RECIPE_HEAD + yaml.safe_dump(content, sort_keys=False))
