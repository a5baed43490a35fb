"""The folder of one training run: its settings, its finished weights, and checks that no other file is overwritten."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json, save_tensors, save_text
from tavq_plugin.io.ownership import SAFETENSORS_TEMPORARY, claim, fresh_folder, refuse_strangers, refuse_taken, remove
from tavq_plugin.io.state_tree import load_tree, save_tree
from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.methods.base import Method
from tavq_plugin.moved import written_settings
from tavq_plugin.training.checkpoint import MAKER, Checkpoints
from tavq_plugin.training.initial_checkpoint import HASH, checkpoint_settings
from tavq_plugin.training.recipe import YOUNGER, Recipe
from tavq_plugin.training.recipe_yaml import RECIPE_HEAD

TRAINED_FILES = ("settings.json", "recipe.yaml", "host.safetensors", "tavq.safetensors", "method.safetensors",
                 "history.json")  # fmt: skip
PARTIAL_FILES = (*TRAINED_FILES, SAFETENSORS_TEMPORARY)
NAMES = (*TRAINED_FILES, "checkpoints/", ".final.partial/", ".final/")
"""What a run writes into its folder and may overwrite there."""
# settings that change nothing about what is learned
BOOKKEEPING = ("checkpoint_every", "keep", "tracker", "diagnose_every", "images_on_gpu")
MEAN = "text_mean."  # followed by the granularity, in tavq.safetensors
PHASES = "phases"  # total steps after the run and after each extension of it; only in settings of extended runs
NOT_OF_RECIPE = ("corpus", HASH, PHASES)  # what settings.json holds besides the recipe


def refuse_foreign_files(folder: Path, recipe: Recipe) -> None:
    """Raise FileExistsError, naming the file, if a run would overwrite or remove something that is not ours."""
    refuse_taken(folder, NAMES, MAKER, former=_names_before_markers(folder))
    Checkpoints(folder / "checkpoints").refuse_taken()
    refuse_strangers(folder / ".final.partial", former=PARTIAL_FILES)
    refuse_strangers(folder / ".final")
    path = folder / "recipe.yaml"
    if os.path.lexists(path) and not _is_our_recipe(path, recipe):
        raise FileExistsError(
            f"{path} is in the way and was not made by {MAKER}: give another --out, or move it; --recipe reads a "
            "recipe of your own from anywhere else"
        )


def refuse_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds a run with other settings; those in `BOOKKEEPING` may differ."""
    saved = saved_settings(folder, strict=True)
    if saved is None:
        return
    if PHASES in saved:
        first, *_, total = saved[PHASES]
        raise ValueError(
            f"{folder} holds a run of {first:,} steps that was extended to {total:,}: tavq train --out {folder} "
            f"--extend {total} loads it; give another folder for a new run"
        )
    ours, theirs = ({**YOUNGER, **flat_settings(side)} for side in (settings, saved))
    names = sorted((ours.keys() | theirs.keys()) - set(BOOKKEEPING))
    if HASH in ours and HASH in theirs:
        names.remove("init")  # the hash tells; the file may have moved
        if ours[HASH] != theirs[HASH]:
            raise ValueError(
                f"{folder} holds a run that started from {theirs['init']} with sha256 {theirs[HASH][:12]}…, and "
                f"{ours['init']} has {ours[HASH][:12]}…: give the checkpoint as it was, or another --out"
            )
    differing = [name for name in names if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder} holds a run with {name}={theirs.get(name)!r}, and this one has {ours.get(name)!r}"
            f"{f' ({len(differing)} settings differ)' if differing[1:] else ''}: give another folder, or delete it"
        )


def resolved_recipe(recipe: Recipe, *folders: Path) -> Recipe:
    """The recipe with its method's options complete: those with a default that depends on others have their value.

    Where the recipe leaves such an option open, a run of this method that one of the folders holds decides, so a run
    keeps its method when it is resumed, also under a release with other defaults.
    """
    if recipe.method not in METHODS:
        return recipe  # `build` refuses it
    found = (saved for saved in map(saved_settings, folders) if isinstance(saved, dict))
    saved = next((saved.get("options") for saved in found if saved.get("method") == recipe.method), None)
    return replace(recipe, options=method_class(recipe.method).resolved_options(recipe.options, saved))


def initial_settings(folder: Path, recipe: Recipe) -> dict[str, str]:
    """What settings.json holds about the recipe's `init` (see `checkpoint_settings`).

    A finished run of the same `init` does not need the checkpoint's file any more.
    """
    former = saved_settings(folder) if finished_summary(folder) is not None else None
    return checkpoint_settings(recipe.init, former)


def recipe_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the recipe alone, from what settings.json holds."""
    return {name: value for name, value in saved.items() if name not in NOT_OF_RECIPE}


def claim_run(folder: Path) -> None:
    """List the run's file names as ours; raises FileExistsError as `refuse_foreign_files`."""
    claim(folder, NAMES, MAKER, former=_names_before_markers(folder))


def begin_run(folder: Path, recipe: Recipe, settings: dict[str, Any]) -> None:
    """Claim the run's file names and write its recipe and settings.

    A recipe.yaml that already holds this recipe is not rewritten, so it keeps its comments.
    """
    import yaml

    claim_run(folder)
    path, content = folder / "recipe.yaml", recipe.to_dict()
    if not path.exists() or yaml.safe_load(path.read_text(encoding="utf-8")) != content:
        save_text(path, RECIPE_HEAD + yaml.safe_dump(content, sort_keys=False))
    save_json(folder / "settings.json", settings)


def try_saving(folder: Path, tokenizer: Tokenizer, method: Method) -> None:
    """Write the weights as `save_finished` will, then remove them: before the first step, so that a run fails early.

    Raises OSError if the disk is full or cannot be written, and what `save_weights` raises.
    """
    partial = folder / ".final.partial"
    try:
        _write_weights(partial, tokenizer, method)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the weights cannot be written in {folder} ({error}), so the run could not be saved at its end: free some "
            "space and run the same command again; nothing was trained"
        ) from error
    finally:
        remove(partial)


def _write_weights(partial: Path, tokenizer: Tokenizer, method: Method) -> None:
    fresh_folder(partial, TRAINED_FILES, MAKER, former=PARTIAL_FILES)
    save_weights(partial, tokenizer, None)
    save_tree(partial / "method.safetensors", method.state_dict())


def save_finished(folder: Path, tokenizer: Tokenizer, method: Method, summary: dict[str, Any]) -> None:
    """Write the weights of a finished run, then `summary` as history.json; that file marks the run as finished.

    Each file is complete or absent. Raises OSError if the disk is full or cannot be written.
    """
    partial = folder / ".final.partial"
    try:
        _write_weights(partial, tokenizer, method)
        for path in sorted(partial.glob("*.safetensors")):
            path.replace(folder / path.name)
        save_json(folder / "history.json", summary)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the finished run could not be written in {folder} ({error}): free some space and run the same command "
            "again; it resumes from the last checkpoint"
        ) from error
    finally:
        remove(partial)


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """What history.json of a finished run holds; None if the run is not finished."""
    return read_json(folder / "history.json")


def load_finished(folder: Path, tokenizer: Tokenizer, method: Method) -> None:
    """Load a finished run's weights strictly into a tokenizer and a method built from the same recipe."""
    load_weights(folder, tokenizer, None)
    method.load_state_dict(load_tree(folder / "method.safetensors"))


def save_weights(
    folder: Path, tokenizer: Tokenizer, align: nn.Module | None, means: Mapping[str, Tensor] | None = None
) -> None:
    """Write `host.safetensors` and `tavq.safetensors`.

    The first holds only the host's state dict and loads strictly into a new host; the second holds the plug-in's
    `hierarchy.*` and, if they are given, the alignment's `align.*` and the training texts' means, `text_mean.*`.
    """
    save_tensors(tokenizer.host.state_dict(), folder / "host.safetensors")
    parts = {"hierarchy": tokenizer.hierarchy, **({"align": align} if align is not None else {})}
    plugin = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    plugin |= {f"{MEAN}{granularity}": mean for granularity, mean in (means or {}).items()}
    save_tensors(plugin, folder / "tavq.safetensors")


def load_weights(folder: Path, tokenizer: Tokenizer, align: nn.Module | None) -> None:
    """Load what `save_weights` wrote strictly into a tokenizer and an alignment built from the same settings."""
    tokenizer.host.load_state_dict(load_file(folder / "host.safetensors"), strict=True)
    plugin = load_file(folder / "tavq.safetensors")
    for part, module in (("hierarchy", tokenizer.hierarchy), ("align", align)):
        if module is not None:
            own = {name.removeprefix(f"{part}."): v for name, v in plugin.items() if name.startswith(f"{part}.")}
            module.load_state_dict(own, strict=True)


def flat_settings(settings: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, each value a number or a string.

    >>> flat_settings({"steps": 5, "optimizer": {"betas": [0.9, 0.99]}})
    {'steps': 5, 'optimizer.betas': '[0.9, 0.99]'}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat_settings(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


def saved_settings(folder: Path, *, strict: bool = False) -> Any:
    """What the folder's settings.json holds, by today's names; None if there is none."""
    return written_settings(read_json(folder / "settings.json", strict=strict))


def _names_before_markers(folder: Path) -> tuple[str, ...]:
    """Names that may lack a marker file, as earlier releases wrote none; checkpoints are checked elsewhere."""
    saved = saved_settings(folder)
    is_run = isinstance(saved, dict) and {"method", "host", "corpus"} <= saved.keys()
    return (*(TRAINED_FILES if is_run else ()), "recipe.yaml", "checkpoints/", ".final.partial/")


def _is_our_recipe(path: Path, recipe: Recipe) -> bool:
    """Whether a recipe.yaml has our header, or holds the given recipe or that of the run saved in its folder."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = written_settings(yaml.safe_load(text))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    saved = saved_settings(path.parent)
    former = recipe_settings(saved) if isinstance(saved, dict) else None
    return text.startswith(RECIPE_HEAD) or content in (former, recipe.to_dict())
