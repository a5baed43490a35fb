"""A run's figures as two files in its folder, measured.safetensors and, written last, measured.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tavq_plugin.evaluation.evaluate import Measured
from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.ownership import claim, claims, refuse_taken
from tavq_plugin.moved import current_settings

MAKER = "tavq compare"
FILES = ("measured.safetensors", "measured.json")


def save_measured(folder: Path, measured: Measured, settings: dict[str, Any]) -> None:
    """Write a run's figures and what they were measured on."""
    claim(folder, FILES, MAKER, former=_former(folder))
    (folder / "measured.json").unlink(missing_ok=True)
    parts = {"each": measured.each, "kept": measured.kept}
    tensors = {f"{part}/{name}": value for part, table in parts.items() for name, value in table.items()}
    save_tensors(tensors, folder / "measured.safetensors")
    content = {"settings": settings, "values": measured.values, "absent": measured.absent}
    save_json(folder / "measured.json", content)


def refuse_unlike_figures(folder: Path) -> None:
    """FileExistsError where a file of figures in a run's folder is not ours."""
    refuse_taken(folder, FILES, MAKER, former=_former(folder))


def _former(folder: Path) -> tuple[str, ...]:
    """The figures of a run that was made before there were markers; its settings.json tells such a run."""
    if claims(folder):
        return ()
    kept = read_json(folder / "settings.json", strict=False)
    return FILES if isinstance(kept, dict) and {"method", "host", "corpus"} <= kept.keys() else ()


def load_measured(folder: Path, settings: dict[str, Any]) -> Measured | None:
    """The figures of a run that was measured with the same settings; None where there are none."""
    content = read_json(folder / "measured.json", strict=False)
    if content is None or current_settings(content["settings"]) != settings:
        return None
    tensors = load_file(folder / "measured.safetensors")
    each, kept = (
        {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
        for part in ("each/", "kept/")
    )
    return Measured(content["values"], each, content["absent"], kept)
