"""Checkpoints. Each is written to a temporary folder, synced and renamed, so a kill never leaves half of one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tavq_plugin.io.atomic import save_text, sync
from tavq_plugin.io.ownership import (
    SAFETENSORS_TEMPORARY,
    claim,
    claims,
    fresh_folder,
    refuse_strangers,
    refuse_taken,
    remove,
    strangers,
)
from tavq_plugin.io.state_tree import load_tree, save_tree

MAKER = "tavq train"
STEP_FILES = ("state.safetensors", "history.json")
STEP_PARTIAL_FILES = (*STEP_FILES, SAFETENSORS_TEMPORARY)
NAMES = ("step-*/", ".step-*.partial/")


class Checkpoints:
    """The checkpoints of a run: one folder per step, at most `keep` of them."""

    def __init__(self, folder: Path, *, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    def saved(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return [path for path in self._folders("step-") if (path / "state.safetensors").is_file()]

    def refuse_taken(self) -> None:
        """Raise FileExistsError if we did not make the folder, or something else in it has a checkpoint's name."""
        former = self._names_before_markers()
        refuse_taken(self.folder, NAMES, MAKER, former=former)
        for path in self._folders(".step-"):
            refuse_strangers(path, former=STEP_PARTIAL_FILES)
        if self.folder.is_dir() and not claims(self.folder) and not former and any(self.folder.iterdir()):
            raise FileExistsError(
                f"{self.folder} is in the way and was not made by {MAKER}: give another --out, or move it"
            )

    def save(self, number: int, state: Any, history: list[dict[str, Any]]) -> None:
        """Write the state after `number` steps, then remove the oldest checkpoints beyond `keep`.

        Raises OSError if the disk is full or cannot be written; earlier checkpoints stay complete.
        """
        target = self.folder / f"step-{number:09}"
        partial = self.folder / f".{target.name}.partial"
        try:
            claim(self.folder, NAMES, MAKER, former=self._names_before_markers())
            for unfinished in {*self._folders("step-"), *self._folders(".step-")} - {*self.saved()}:
                remove(unfinished)  # a kill left it half-written or half-removed
            fresh_folder(partial, STEP_FILES, MAKER, former=STEP_PARTIAL_FILES)
            save_tree(partial / "state.safetensors", state)
            save_text(partial / "history.json", json.dumps(history))
            put_in_place(partial, target)
        except (OSError, SafetensorError) as error:
            remove(partial)
            saved = self.saved()
            start = f"it resumes from {saved[-1]}" if saved else "it starts anew, as there is no earlier checkpoint"
            raise OSError(
                f"the checkpoint of step {number} could not be written in {self.folder} ({error}): free some space and "
                f"run the same command again; {start}"
            ) from error
        for old in self.saved()[: -self.keep]:
            remove(old, former=STEP_FILES)

    def latest(self) -> tuple[Any, list[dict[str, Any]]] | None:
        """State and history of the newest checkpoint; None if there is none. Raises ValueError if it is damaged."""
        saved = self.saved()
        if not saved:
            return None
        try:
            history = json.loads((saved[-1] / "history.json").read_text(encoding="utf-8"))
            return load_tree(saved[-1] / "state.safetensors"), history
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{saved[-1]} cannot be read ({error}): delete it; the run then resumes from the checkpoint before it, "
                "or starts anew"
            ) from error

    def clear(self) -> None:
        """Remove all checkpoints of a finished run. Files in the folder that are not ours stay."""
        for path in [*self._folders("step-"), *self._folders(".step-")]:
            remove(path, former=STEP_PARTIAL_FILES)
        remove(self.folder)

    def _names_before_markers(self) -> list[str]:
        """Names of checkpoint folders that may lack a marker file, as earlier releases wrote none; known by content."""
        complete = [path for path in self._folders("step-") if all((path / name).is_file() for name in STEP_FILES)]
        begun = [path for path in self._folders(".step-") if not strangers(path, former=STEP_PARTIAL_FILES)]
        return [f"{path.name}/" for path in [*complete, *begun]]

    def _folders(self, start: str) -> list[Path]:
        """Folders of checkpoints, by their name alone, oldest first."""
        pattern = re.compile(re.escape(start) + (r"\d{9,}" if start == "step-" else r"\d{9,}\.partial"))
        found = sorted(self.folder.glob(f"{start}*")) if self.folder.is_dir() else []
        return [path for path in found if pattern.fullmatch(path.name) and path.is_dir()]


def put_in_place(partial: Path, target: Path) -> None:
    """Sync a folder and rename it to `target`; if `target` exists, it stays and `partial` is removed."""
    sync(partial)  # its files were synced as they were written
    if target.exists():
        remove(partial)
        return
    os.replace(partial, target)
    sync(target.parent)
