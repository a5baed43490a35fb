"""The folders of the demo's runs: one for the unfinished run, and one per finished run, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json
from tavq_plugin.io.ownership import fresh_folder, refuse_strangers, remove
from tavq_plugin.moved import current_settings
from tavq_plugin.training.checkpoint import STEP_PARTIAL_FILES
from tavq_plugin.training.run_folder import PARTIAL_FILES, TRAINED_FILES, save_weights

MAKER = "tavq demo"
RUN_FILES = ("settings.json", "host.safetensors", "tavq.safetensors", "metrics.json")
UNFINISHED_FILES = (
    "asked.json",
    *TRAINED_FILES,
    *(f".final.partial/{name}" for name in PARTIAL_FILES),
    *(f"checkpoints/{step}/{name}" for step in ("step-*", ".step-*.partial") for name in STEP_PARTIAL_FILES),
)
"""What the folder of an unfinished run may hold if it was made before ownership markers existed."""


def open_unfinished(folder: Path, settings: dict) -> Path:
    """The folder of the unfinished run: kept if it was begun with these settings, else emptied.

    Raises FileExistsError if it would be emptied and holds a file that the demo did not write.
    """
    if current_settings(read_json(folder / "asked.json", strict=False)) != settings:
        fresh_folder(folder, ("asked.json",), MAKER, former=unfinished_before_markers(folder))
        save_json(folder / "asked.json", settings)
    return folder


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished run's folder, after its run was saved elsewhere."""
    remove(folder, former=unfinished_before_markers(folder))


def save_run(
    folder: Path,
    tokenizer: Tokenizer,
    align: nn.Module | None,
    settings: dict,
    metrics: dict,
    means: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a finished run. An earlier run of that name is replaced only after the new one is complete.

    Raises FileExistsError if the folder holds a file that the demo did not write.
    """
    partial = fresh_folder(folder.with_name(f".{folder.name}.partial"), RUN_FILES, MAKER, former=RUN_FILES)
    save_json(partial / "settings.json", settings)
    save_weights(partial, tokenizer, align, means)
    save_json(partial / "metrics.json", metrics)
    refuse_foreign_run(folder)
    remove(folder, former=run_before_markers(folder))
    os.replace(partial, folder)


def load_metrics(folder: Path, settings: dict) -> dict[str, Any] | None:
    """The metrics of a run that was finished with the same settings; None if there is none."""
    saved = current_settings(read_json(folder / "settings.json", strict=False))
    return read_json(folder / "metrics.json", strict=False) if saved == settings else None


def refuse_foreign_run(folder: Path) -> None:
    """Raise FileExistsError if a finished run's folder holds a file that the demo did not write."""
    refuse_strangers(folder, former=run_before_markers(folder))


def refuse_foreign_unfinished(folder: Path) -> None:
    """Raise FileExistsError if the unfinished run's folder holds a file that the demo did not write."""
    refuse_strangers(folder, former=unfinished_before_markers(folder))


def run_before_markers(folder: Path) -> tuple[str, ...]:
    """The files of a demo run that was made before ownership markers existed; none for any other folder."""
    return RUN_FILES if _names_a_run(folder / "settings.json") else ()


def unfinished_before_markers(folder: Path) -> tuple[str, ...]:
    """The files of an unfinished run that was begun before ownership markers existed; none for any other folder."""
    return UNFINISHED_FILES if _names_a_run(folder / "asked.json") else ()


def _names_a_run(path: Path) -> bool:
    content = read_json(path, strict=False)
    return isinstance(content, dict) and {"run", "seed", "steps"} <= content.keys()
