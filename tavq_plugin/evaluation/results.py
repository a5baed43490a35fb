"""A run's figures as two files in its folder, measured.safetensors and, written last, measured.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tavq_plugin.evaluation.evaluate import Measured
from tavq_plugin.io.atomic import save_json
from tavq_plugin.io.storable import storable


def save_measured(folder: Path, measured: Measured, settings: dict[str, Any]) -> None:
    """Write a run's figures and what they were measured on."""
    (folder / "measured.json").unlink(missing_ok=True)
    parts = {"each": measured.each, "kept": measured.kept}
    tensors = {f"{part}/{name}": value for part, table in parts.items() for name, value in table.items()}
    partial = folder / "measured.safetensors.partial"
    save_file(storable(tensors), partial)
    partial.replace(folder / "measured.safetensors")
    content = {"settings": settings, "values": measured.values, "absent": measured.absent}
    save_json(folder / "measured.json", content)


def load_measured(folder: Path, settings: dict[str, Any]) -> Measured | None:
    """The figures of a run that was measured with the same settings; None where there are none."""
    try:
        content = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    if content["settings"] != settings:
        return None
    tensors = load_file(folder / "measured.safetensors")
    each, kept = (
        {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
        for part in ("each/", "kept/")
    )
    return Measured(content["values"], each, content["absent"], kept)
