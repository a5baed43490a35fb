"""What the numbers of `compare` and `evaluate` depend on, as their pages and JSON files state it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.plan import Plan
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.networks.weights import files_of


def comparison_protocol(plan: Plan, about: dict[str, Any], targets: TextTargets, workers: int) -> dict[str, Any]:
    """What the numbers of a comparison depend on; `about` is the description of its corpus."""
    return {
        "data": "scenes" if plan.data is None else str(plan.data),
        **about,
        "split": "tune",
        "methods": list(plan.methods),
        "seeds": list(plan.seeds),
        "recipe": plan.shared,
        "own": {name: plan.options_of(name) for name in plan.methods},
        **measurement_protocol(targets, plan.weights),
        "images": "runs of one seed see the same training images in the same order; all runs share the held-out images",
        "threads": 1 if workers > 1 else torch.get_num_threads(),
        "workers": workers,
    }


def measurement_protocol(targets: TextTargets, weights: Path | None) -> dict[str, Any]:
    """How the numbers are measured and tested: the part of the protocol that `compare` and `evaluate` share."""
    return {
        "commit": commit(),
        "measuring": {
            "words": len(targets.top_words),
            "probe_rows": len(targets.probe_rows),
            "transported": len(targets.transport_images),
        },
        "weights": files_of(weights),
        "chance": "each text metric with the texts dealt at random among the held-out images, mean of "
        f"{targets.settings.permutations} deals, stored beside each value",
        "spread": "standard deviation over seeds; none for one seed",
        "differences": "random effects of seeds and images (crossed), t test over seeds where there is no value per "
        "image; two-sided, p adjusted over the methods by Holm; no test below three seeds",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(),
    }


def measured_cards(content: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The protocol card of every metric that a method or a floor has, with the data, split and seeds."""
    measured_on = {name: protocol[name] for name in ("data", "split", "n_eval", "seeds")}
    tables = (*content["methods"].values(), *content["floors"].values())
    return {metric: {**card_of(metric).to_dict(), **measured_on} for table in tables for metric in table}


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on."""
    versions = {}
    for name in ("tavq-plugin", "torch", "torchmetrics", "transformers", "accelerate"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def commit() -> str | None:
    """The commit of the checkout that runs, with a + if files differ from it; None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
