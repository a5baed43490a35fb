"""Checkpoints, whole or not there: written aside, synced, then renamed; a kill at any moment leaves the last."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tavq_plugin.io.state_tree import load_tree, save_tree


class Checkpoints:
    """The checkpoints of a run, one folder a step, at most `keep` of them."""

    def __init__(self, folder: Path, *, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    def there(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def save(self, number: int, state: Any, history: list[dict[str, Any]]) -> None:
        """Write the state after `number` steps, then let go of older ones than `keep`.

        Raises OSError, with the mend, where the disk is full or refuses; what was there before is left whole.
        """
        target = self.folder / f"step-{number:09}"
        partial = self.folder / f".{target.name}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_tree(partial / "state.safetensors", state)
            (partial / "history.json").write_text(json.dumps(history), encoding="utf-8")
            put_in_place(partial, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.there()
            last = f"{kept[-1]} is whole" if kept else "there was none before"
            raise OSError(
                f"the checkpoint of step {number} could not be written in {self.folder} ({error}); {last}: free some "
                "space and run the same command again, it goes on from there"
            ) from error
        for old in self.there()[: -self.keep]:
            shutil.rmtree(old)

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
        """Let go of all: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Sync a folder's files to the disk and give it its name; a whole one of that name stays as it is."""
    for path in [*partial.iterdir(), partial]:
        _sync(path)
    if target.exists():
        shutil.rmtree(partial)
        return
    os.replace(partial, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
