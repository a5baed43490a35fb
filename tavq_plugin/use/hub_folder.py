"""The folder of a published run: config.json, host.safetensors and tavq.safetensors; no pickle, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tavq_plugin.evaluation.sources.finished_runs import FinishedRun
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import save_json
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.training.run_folder import MEAN, save_weights
from tavq_plugin.use.find_run import CONFIG, HUB_VERSION, KIND
from tavq_plugin.use.run_data import data_of_run


def write_hub_folder(
    folder: Path,
    source: FinishedRun,
    tokenizer: Tokenizer,
    align: TextAlignment | None,
    means: Mapping[str, Tensor] | None,
    metrics: Mapping[str, Any],
    fingerprint: str,
) -> None:
    """Write the three files; config.json comes last, so a folder that has it is whole."""
    save_weights(folder, tokenizer, align, means)
    data = data_of_run(source)
    content = {
        "kind": KIND,
        "version": HUB_VERSION,
        "name": source.name,
        "seed": source.seed,
        "recipe": replace(source.recipe, init="").to_dict(),
        "training_data": {"data": data.name if data.name == "scenes" else Path(data.name).name, **_numbers(data)},
        "trained_on": _without_path(source.trained_on),
        "metrics": dict(metrics),
        "fingerprint": fingerprint,
        "versions": {name: version(name) for name in ("tavq-plugin", "torch")},
    }
    save_json(folder / CONFIG, content)


def saved_means(folder: Path) -> dict[str, Tensor] | None:
    """The means of the training texts that tavq.safetensors holds; None where it holds none."""
    try:
        with safe_open(folder / "tavq.safetensors", "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(MEAN)]  # noqa: SIM118
            found = {name.removeprefix(MEAN): tensors.get_tensor(name).to(torch.float32) for name in names}
    except (OSError, SafetensorError):
        return None
    return found or None


def _numbers(data: Any) -> dict[str, int]:
    return {"n_train": data.n_train, "n_eval": data.n_eval}


def _without_path(trained_on: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The fingerprint of the training data, with the name of their folder alone: paths of a machine are private."""
    return None if trained_on is None else {**trained_on, "name": Path(str(trained_on.get("name", ""))).name}
