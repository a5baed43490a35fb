"""Replace a finished run's files by those of its extension, so that a kill at any moment loses neither.

All new files are first written to `.final`, which appears only when it is complete. They are then moved, history.json
last; in between the folder has no history.json, so it does not count as finished. The next command moves the rest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import save_json, save_text, sync
from tavq_plugin.io.ownership import fresh_folder, remove
from tavq_plugin.io.state_tree import save_tree
from tavq_plugin.methods.base import Method
from tavq_plugin.training.checkpoint import MAKER, put_in_place
from tavq_plugin.training.run_folder import PARTIAL_FILES, RECIPE_HEAD, TRAINED_FILES, recipe_settings, save_weights

LAST = "history.json"  # marks a folder as that of a finished run


def replace_finished(
    folder: Path, tokenizer: Tokenizer, method: Method, settings: dict[str, Any], summary: dict[str, Any], note: str
) -> None:
    """Write all files of a finished run in place of the earlier ones; `note` is a comment in its recipe.yaml.

    Raises OSError if the disk is full or cannot be written; the earlier files are then unchanged.
    """
    import yaml

    partial = folder / ".final.partial"
    try:
        fresh_folder(partial, TRAINED_FILES, MAKER, former=PARTIAL_FILES)
        save_weights(partial, tokenizer, None)
        save_tree(partial / "method.safetensors", method.state_dict())
        save_json(partial / "settings.json", settings)
        recipe = yaml.safe_dump(recipe_settings(settings), sort_keys=False)
        save_text(partial / "recipe.yaml", f"{RECIPE_HEAD}# {note}\n{recipe}")
        save_json(partial / LAST, summary)
        put_in_place(partial, folder / ".final")
    except (OSError, SafetensorError) as error:
        remove(partial)
        raise OSError(
            f"the extended run could not be written in {folder} ({error}): free some space and run the same command "
            "again; it resumes from the last checkpoint, and the run as it was is unchanged"
        ) from error
    move_finished(folder)


def move_finished(folder: Path) -> None:
    """Move the files of a complete `.final` to their places; does nothing if there is none."""
    complete = folder / ".final"
    if not complete.is_dir():
        return
    if (complete / LAST).exists():
        (folder / LAST).unlink(missing_ok=True)
        sync(folder)
    for name in (*(name for name in TRAINED_FILES if name != LAST), LAST):
        if (complete / name).exists():
            os.replace(complete / name, folder / name)
            sync(folder)
    remove(complete)


def finish_replacing(folder: Path) -> None:
    """`move_finished` by the main process alone, before the others read the folder."""
    import torch
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        move_finished(folder)
