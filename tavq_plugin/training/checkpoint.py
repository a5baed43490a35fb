"""Checkpoints, whole or not there: written aside, synced, then renamed; a kill at any moment leaves the last."""

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
from tavq_plugin.training.run_folder import STEP_FILES

MAKER = "tavq train"
PARTIAL_FILES = (*STEP_FILES, SAFETENSORS_TEMPORARY)
NAMES = ("step-*/", ".step-*.partial/")


class Checkpoints:
    """The checkpoints of a run, one folder a step, at most `keep` of them."""

    def __init__(self, folder: Path, *, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    def there(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return [path for path in self._folders("step-") if (path / "state.safetensors").is_file()]

    def refuse_taken(self) -> None:
        """FileExistsError where the folder was not made by us, or holds a checkpoint's name that is not ours."""
        former = self._former()
        refuse_taken(self.folder, NAMES, MAKER, former=former)
        for path in self._folders(".step-"):
            refuse_strangers(path, former=PARTIAL_FILES)
        if self.folder.is_dir() and not claims(self.folder) and not former and any(self.folder.iterdir()):
            raise FileExistsError(
                f"{self.folder} is in the way and was not made by {MAKER}: give another --out, or move it"
            )

    def save(self, number: int, state: Any, history: list[dict[str, Any]]) -> None:
        """Write the state after `number` steps, then let go of older ones than `keep`.

        Raises OSError, with the mend, where the disk is full or refuses; what was there before is left whole.
        """
        target = self.folder / f"step-{number:09}"
        partial = self.folder / f".{target.name}.partial"
        try:
            claim(self.folder, NAMES, MAKER, former=self._former())
            fresh_folder(partial, STEP_FILES, MAKER, former=PARTIAL_FILES)
            save_tree(partial / "state.safetensors", state)
            save_text(partial / "history.json", json.dumps(history))
            put_in_place(partial, target)
        except (OSError, SafetensorError) as error:
            remove(partial)
            kept = self.there()
            last = f"{kept[-1]} is whole" if kept else "there was none before"
            raise OSError(
                f"the checkpoint of step {number} could not be written in {self.folder} ({error}); {last}: free some "
                "space and run the same command again, it goes on from there"
            ) from error
        for old in self.there()[: -self.keep]:
            remove(old, former=STEP_FILES)

    def latest(self) -> tuple[Any, list[dict[str, Any]]] | None:
        """State and history of the newest checkpoint, or None."""
        there = self.there()
        if not there:
            return None
        try:
            history = json.loads((there[-1] / "history.json").read_text(encoding="utf-8"))
            return load_tree(there[-1] / "state.safetensors"), history
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{there[-1]} cannot be read ({error}): delete it, and the run goes on from the one before or begins "
                "anew"
            ) from error

    def clear(self) -> None:
        """Let go of all: the run is finished. What is not ours in the folder stays."""
        for path in [*self._folders("step-"), *self._folders(".step-")]:
            remove(path, former=PARTIAL_FILES)
        remove(self.folder)

    def _former(self) -> list[str]:
        """The checkpoints that were made before there were markers."""
        whole = [path for path in self._folders("step-") if all((path / name).is_file() for name in STEP_FILES)]
        begun = [path for path in self._folders(".step-") if not strangers(path, former=PARTIAL_FILES)]
        return [f"{path.name}/" for path in [*whole, *begun]]

    def _folders(self, start: str) -> list[Path]:
        """Folders of checkpoints, by their name alone, oldest first."""
        pattern = re.compile(re.escape(start) + (r"\d{9,}" if start == "step-" else r"\d{9,}\.partial"))
        there = sorted(self.folder.glob(f"{start}*")) if self.folder.is_dir() else []
        return [path for path in there if pattern.fullmatch(path.name) and path.is_dir()]


def put_in_place(partial: Path, target: Path) -> None:
    """Sync a folder's files to the disk and give it its name; a whole one of that name stays as it is."""
    sync(partial)  # its files were synced as they were written
    if target.exists():
        remove(partial)
        return
    os.replace(partial, target)
    sync(target.parent)
