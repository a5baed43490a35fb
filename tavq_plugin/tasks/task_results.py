"""The result of one task for one run, kept in the run's folder: read again if everything that it depends on is equal.

result.safetensors is written first and result.json last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.ownership import claim
from tavq_plugin.tasks.fit_model import MAKER
from tavq_plugin.tasks.task import OF_CODES, Condition, Sample, TaskResult

FILES = ("result.safetensors", "result.json")


def checked_result(result: TaskResult, name: str) -> TaskResult:
    """The result itself. Raises FloatingPointError if a mean is not finite, and ValueError without the codes' own."""
    if OF_CODES not in result.conditions:
        raise ValueError(f"task {name} gave no condition {OF_CODES!r}, only {', '.join(result.conditions)}")
    for label, condition in result.conditions.items():
        broken = [metric for metric, value in condition.values.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(f"{broken[0]} of {label} is {condition.values[broken[0]]}: the training broke")
    return result


def save_result(folder: Path, result: TaskResult, settings: Mapping[str, Any]) -> None:
    """Write a result, with the settings that it depends on. Raises FileExistsError for a file that is not ours."""
    claim(folder, FILES, MAKER)
    (folder / "result.json").unlink(missing_ok=True)
    tensors = {f"sample {i} {j}": image for i, row in enumerate(result.samples) for j, image in enumerate(row.images)}
    conditions = []
    for i, (name, condition) in enumerate(result.conditions.items()):
        tensors |= {f"each {i} {metric}": each for metric, each in condition.per_image.items()}
        about = {"name": name, "values": dict(condition.values), "per_image": list(condition.per_image)}
        conditions.append(about)
    samples = [
        {"given": row.given, "images": len(row.images), "text": row.text, "truth": row.truth} for row in result.samples
    ]
    save_tensors(tensors, folder / "result.safetensors")
    content = {"settings": dict(settings), "conditions": conditions, "samples": samples}
    save_json(folder / "result.json", {**content, "missing": dict(result.missing), "protocol": dict(result.protocol)})


def load_result(folder: Path, settings: Mapping[str, Any]) -> TaskResult | None:
    """The result that was measured with the same settings; None if there is none."""
    content = read_json(folder / "result.json", strict=False)
    asked = json.loads(json.dumps(settings))  # tuples are lists in the file
    if not isinstance(content, dict) or content.get("settings") != asked:
        return None
    tensors = load_file(folder / "result.safetensors")
    conditions = {
        about["name"]: Condition(
            about["values"], {metric: tensors[f"each {i} {metric}"] for metric in about["per_image"]}
        )
        for i, about in enumerate(content["conditions"])
    }
    samples = [
        Sample(row["given"], [tensors[f"sample {i} {j}"] for j in range(row["images"])], row["text"], row["truth"])
        for i, row in enumerate(content["samples"])
    ]
    return TaskResult(conditions, content["missing"], samples, content["protocol"])
