"""Pictures of a comparison: training curves, code usage, reconstructions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.evaluation.report.pictures import pyplot, reconstruction_grid, save_figure
from tavq_plugin.io.atomic import read_json
from tavq_plugin.pixels import to_float

SMOOTHING = 0.9  # weight of the past in a curve's running mean


def curves(histories: Mapping[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Draw L1 and usage over the steps, one line per method: mean over its seeds, smoothed; PNG."""
    plt = pyplot()
    shown = [name for name in ("pixel", "usage3") if any(name in row for runs in histories.values() for row in runs[0])]
    figure, axes = plt.subplots(1, len(shown), figsize=(5.4 * len(shown), 3.6), squeeze=False, layout="constrained")
    titles = {"pixel": "L1 of a batch", "usage3": "codes used in a batch, %"}
    for axis, term in zip(axes[0], shown, strict=True):
        for number, (name, runs) in enumerate(histories.items()):
            rows = [[row for row in run if term in row] for run in runs]
            length = min(map(len, rows))
            if not length:
                continue
            steps = [row["step"] for row in rows[0][:length]]
            mean = torch.tensor([[row[term] for row in run[:length]] for run in rows]).mean(0)
            axis.plot(steps, _smooth(mean), label=name, linewidth=1.2, color=_colour(plt, number))
        axis.set(xlabel="optimizer step", title=titles[term])
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7, frameon=False, ncols=2)
    save_figure(figure, path)


def usage(counts: Mapping[str, Tensor], path: Path) -> None:
    """Draw how often each code occurs, most used first, one panel per method, from {name: k counts}; PNG."""
    plt = pyplot()
    columns = min(5, len(counts))
    lines = -(-len(counts) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.3 * columns, 1.9 * lines), squeeze=False, layout="constrained", sharey=True
    )
    for axis in axes.flat[len(counts) :]:
        axis.set_axis_off()
    for number, (axis, (name, count)) in enumerate(zip(axes.flat, counts.items(), strict=False)):
        share = 100 * count.double().sort(descending=True).values / count.sum()
        axis.fill_between(range(len(share)), share.clamp(min=1e-3), 1e-3, step="mid", color=_colour(plt, number))
        axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel("codes, most used first", fontsize=8)
    figure.supylabel("share of places, %", fontsize=8)
    save_figure(figure, path)


def reconstructions(images: Tensor, shown: Mapping[str, Tensor], path: Path) -> None:
    """Draw the held-out images and every method's reconstructions, all n 3 h w uint8; PNG."""
    reconstruction_grid({name: to_float(rows) for name, rows in {"image": images, **shown}.items()}, path)


def history_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a finished run's history.json, one per logged step."""
    return read_json(folder / "history.json")["history"]


def _smooth(values: Tensor) -> list[float]:
    """Exponential running mean, corrected for its start at 0."""
    mean, weight, out = 0.0, 0.0, []
    for value in values.tolist():
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + 1 - SMOOTHING
        out.append(mean / weight)
    return out


def _colour(plt: Any, number: int) -> Any:
    return plt.get_cmap("tab10")(number % 10)
