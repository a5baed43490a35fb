"""A run is a folder: settings.json, host.safetensors, tavq.safetensors, metrics.json; whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import save_json
from tavq_plugin.io.storable import storable


def in_hand(folder: Path, settings: dict) -> Path:
    """The folder of a run in hand: as an interrupted one of the same settings left it, empty after one of others."""
    asked = folder / "asked.json"
    if _read(asked) != settings:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_json(asked, settings)
    return folder


def save_run(folder: Path, tokenizer: Tokenizer, align: nn.Module | None, settings: dict, metrics: dict) -> None:
    """Write a finished run; a former one of that name is replaced only once the new one is whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_json(partial / "settings.json", settings)
    save_weights(partial, tokenizer, align)
    save_json(partial / "metrics.json", metrics)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def save_weights(folder: Path, tokenizer: Tokenizer, align: nn.Module | None) -> None:
    """Write `host.safetensors` and `tavq.safetensors`.

    The first is the host's state dict alone and loads strictly into a fresh host; the second holds the plug-in's
    `hierarchy.*` and `align.*`.
    """
    save_file(storable(tokenizer.host.state_dict()), folder / "host.safetensors")
    parts = {"hierarchy": tokenizer.hierarchy, **({"align": align} if align is not None else {})}
    plugin = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    save_file(storable(plugin), folder / "tavq.safetensors")


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
    kept = _read(folder / "settings.json")
    return _read(folder / "metrics.json") if kept == settings else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
