"""The numbers of one run of `tavq demo`, as its metrics.json holds them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tavq_plugin.cli.demo_table import LEVELS, STORED_METRICS
from tavq_plugin.cli.demo_words import WordMass, mass_figures
from tavq_plugin.evaluation.own_heads import OwnHeadResults
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.training import TrainedRun

PER_IMAGE = {
    "word_map": "grid_word_map_3",
    "word_map_pooled": "word_map_3",
    "psnr": "psnr",
}  # name here → the metric, compared image by image
KEPT_WITH_RUN = ("history", "per_image")  # too long for demo.json


def demo_metrics(
    results: RunResults, own_heads: OwnHeadResults | None, mass: WordMass | None, fitted: TrainedRun
) -> dict[str, Any]:
    """The numbers of one run; None where it has no value.

    Args:
        results: What the probes and the pixels say.
        own_heads: Retrieval by the run's own heads; None for a run without any.
        mass: The mass of naming words inside their object; None for a run without heads, or images without boxes.
        fitted: The trained run.
    """
    values = results.values
    fitted_recall = {
        level: {f"r{k}": values.get(f"image_text_r{k}_{i}") for k in (1, 10, 50)} for i, level in enumerate(LEVELS, 1)
    }
    terms = set().union(*fitted.history)
    history = [dict.fromkeys({"level", "alignment"} - terms, 0.0) | row for row in fitted.history]
    return {
        **stored_codes(results),
        "dead_codes": int(values["dead_codes"]),
        "retrieval_fitted": fitted_recall,
        "word_map": {level: values.get(f"word_map_{i}") for i, level in enumerate(LEVELS, 1)},
        "retrieval": own_heads and dict(zip(LEVELS, own_heads.retrieval, strict=True)),
        "plan_entropy": own_heads.plan_entropy if own_heads else [None] * len(LEVELS),
        "marginal_error": own_heads.marginal_error if own_heads else [None] * len(LEVELS),
        "seconds_per_step": fitted.seconds_per_step,
        "plugin_share": fitted.plugin_share,
        "word_mass": mass_figures(mass),
        "per_image": {
            name: _numbers(results.per_image[metric])
            for name, metric in PER_IMAGE.items()
            if metric in results.per_image
        },
        "history": history,
    }


def stored_codes(results: RunResults) -> dict[str, Any]:
    """The numbers of level 3, the codes that a user stores; None where there is no value."""
    values, psnr = results.values, results.per_image["psnr"]
    return {
        "stored": {metric: values.get(f"{metric}_3") for metric in STORED_METRICS},
        "chance": {metric: results.chance.get(f"{metric}_3", [None])[0] for metric in STORED_METRICS},
        "psnr": values["psnr"],
        "psnr_standard_error": (psnr.std() / len(psnr) ** 0.5).item(),
        "bits": values.get("bits_3"),
        "usage": values.get("usage"),
        "perplexity": values.get("perplexity"),
    }


def _numbers(values: Tensor) -> list[float | None]:
    """One number per image, None where there is none."""
    return [value if value == value else None for value in values.tolist()]
