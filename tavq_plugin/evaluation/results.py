"""The results of one run, and the two files in its folder that store them.

measured.safetensors is written first and measured.json last. Names and keys in both files are those of the first
release, so that older comparisons can be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.ownership import claim, claims, refuse_taken
from tavq_plugin.moved import written_settings

MAKER = "tavq compare"
FILES = ("measured.safetensors", "measured.json")


@dataclass(frozen=True)
class RunResults:
    """Metrics of one run, by name. `a | b` has the entries of both; b's win.

    >>> (RunResults({"psnr": 20.0}) | RunResults({"usage": 50.0})).values
    {'psnr': 20.0, 'usage': 50.0}
    """

    values: dict[str, float] = field(default_factory=dict)  # by metric; `name_2` is level 2 of `name`, their mean
    per_image: dict[str, Tensor] = field(default_factory=dict)  # n held-out images, NaN where an image has no value
    missing: dict[str, str] = field(default_factory=dict)  # why a metric has no value
    artifacts: dict[str, Tensor] = field(default_factory=dict)  # indices, word scores, reconstructions of this run
    chance: dict[str, tuple[float, float]] = field(default_factory=dict)  # mean and spread of metrics on permuted texts

    def __or__(self, other: RunResults) -> RunResults:
        return RunResults(
            self.values | other.values,
            self.per_image | other.per_image,
            self.missing | other.missing,
            self.artifacts | other.artifacts,
            self.chance | other.chance,
        )


def save_results(folder: Path, results: RunResults, settings: dict[str, Any]) -> None:
    """Write a run's results, with the settings they depend on."""
    claim(folder, FILES, MAKER, former=_former(folder))
    (folder / "measured.json").unlink(missing_ok=True)
    parts = {"each": results.per_image, "kept": results.artifacts}
    tensors = {f"{part}/{name}": value for part, table in parts.items() for name, value in table.items()}
    save_tensors(tensors, folder / "measured.safetensors")
    content = {"settings": settings, "values": results.values, "absent": results.missing}
    content["chance"] = results.chance
    save_json(folder / "measured.json", content)


def load_results(folder: Path, settings: dict[str, Any]) -> RunResults | None:
    """The results of a run that was evaluated with the same settings; None if there are none."""
    content = read_json(folder / "measured.json", strict=False)
    if content is None or written_settings(content["settings"]) != settings:
        return None
    tensors = load_file(folder / "measured.safetensors")
    per_image, artifacts = (
        {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
        for part in ("each/", "kept/")
    )
    chance = {name: (mean, spread) for name, (mean, spread) in content.get("chance", {}).items()}
    return RunResults(content["values"], per_image, content["absent"], artifacts, chance)


def refuse_foreign_results(folder: Path) -> None:
    """Raise FileExistsError if a run's folder holds a file of results that tavq-plugin did not write."""
    refuse_taken(folder, FILES, MAKER, former=_former(folder))


def _former(folder: Path) -> tuple[str, ...]:
    """The result files of a run from before ownership markers existed, which its settings.json shows."""
    if claims(folder):
        return ()
    saved = read_json(folder / "settings.json", strict=False)
    return FILES if isinstance(saved, dict) and {"method", "host", "corpus"} <= saved.keys() else ()
