"""A run is a folder: settings.json, host.safetensors, tavq.safetensors, metrics.json; whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.ownership import SAFETENSORS_TEMPORARY, fresh_folder, refuse_strangers, remove
from tavq_plugin.moved import current_settings

MAKER = "tavq demo"
RUN_FILES = ("settings.json", "host.safetensors", "tavq.safetensors", "metrics.json")
TRAINED_FILES = ("settings.json", "recipe.yaml", "host.safetensors", "tavq.safetensors", "method.safetensors",
                 "history.json")  # fmt: skip
HAND_FILES = ("asked.json",)
STEP_FILES = ("state.safetensors", "history.json")
FORMER_HAND = (
    "asked.json",
    *TRAINED_FILES,
    *(f".final.partial/{name}" for name in (*TRAINED_FILES, SAFETENSORS_TEMPORARY)),
    *(
        f"checkpoints/{step}/{name}"
        for step in ("step-*", ".step-*.partial")
        for name in (*STEP_FILES, SAFETENSORS_TEMPORARY)
    ),
)
"""What a run in hand held before there were markers."""


def in_hand(folder: Path, settings: dict) -> Path:
    """The folder of a run in hand: as an interrupted one of the same settings left it, empty after one of others.

    FileExistsError where what is to go holds something that is not ours.
    """
    if current_settings(read_json(folder / "asked.json", strict=False)) != settings:
        fresh_folder(folder, HAND_FILES, MAKER, former=former_hand(folder))
        save_json(folder / "asked.json", settings)
    return folder


def clear_hand(folder: Path) -> None:
    """Let go of the run in hand: it is finished and saved elsewhere."""
    remove(folder, former=former_hand(folder))


def save_run(folder: Path, tokenizer: Tokenizer, align: nn.Module | None, settings: dict, metrics: dict) -> None:
    """Write a finished run; a former one of that name is replaced only once the new one is whole.

    FileExistsError where the folder holds something that is not ours.
    """
    partial = fresh_folder(folder.with_name(f".{folder.name}.partial"), RUN_FILES, MAKER, former=RUN_FILES)
    save_json(partial / "settings.json", settings)
    save_weights(partial, tokenizer, align)
    save_json(partial / "metrics.json", metrics)
    refuse_unlike_run(folder)
    remove(folder, former=former_run(folder))
    os.replace(partial, folder)


def refuse_unlike_run(folder: Path) -> None:
    """FileExistsError where a folder that a run is to replace holds something that is not ours."""
    refuse_strangers(folder, former=former_run(folder))


def refuse_unlike_hand(folder: Path) -> None:
    """FileExistsError where the folder of the run in hand holds something that is not ours."""
    refuse_strangers(folder, former=former_hand(folder))


def former_run(folder: Path) -> tuple[str, ...]:
    """The files of a run of the demo that was made before there were markers; none where it is no such run."""
    return RUN_FILES if {"run", "seed", "steps"} <= _keys(folder / "settings.json") else ()


def former_hand(folder: Path) -> tuple[str, ...]:
    """The files of a run in hand that was begun before there were markers; none where it is no such run."""
    return FORMER_HAND if {"run", "seed", "steps"} <= _keys(folder / "asked.json") else ()


def save_weights(folder: Path, tokenizer: Tokenizer, align: nn.Module | None) -> None:
    """Write `host.safetensors` and `tavq.safetensors`.

    The first is the host's state dict alone and loads strictly into a fresh host; the second holds the plug-in's
    `hierarchy.*` and `align.*`.
    """
    save_tensors(tokenizer.host.state_dict(), folder / "host.safetensors")
    parts = {"hierarchy": tokenizer.hierarchy, **({"align": align} if align is not None else {})}
    plugin = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    save_tensors(plugin, folder / "tavq.safetensors")


def load_run(folder: Path, tokenizer: Tokenizer, align: nn.Module | None) -> None:
    """Put a run's weights into a tokenizer and an alignment built alike, strictly."""
    tokenizer.host.load_state_dict(load_file(folder / "host.safetensors"), strict=True)
    plugin = load_file(folder / "tavq.safetensors")
    for part, module in (("hierarchy", tokenizer.hierarchy), ("align", align)):
        if module is not None:
            own = {name.removeprefix(f"{part}."): v for name, v in plugin.items() if name.startswith(f"{part}.")}
            module.load_state_dict(own, strict=True)


def load_metrics(folder: Path, settings: dict) -> dict[str, Any] | None:
    """The metrics of a run that was finished with the same settings; None where there is none."""
    kept = current_settings(read_json(folder / "settings.json", strict=False))
    return read_json(folder / "metrics.json", strict=False) if kept == settings else None


def _keys(path: Path) -> set[str]:
    content = read_json(path, strict=False)
    return set(content) if isinstance(content, dict) else set()
