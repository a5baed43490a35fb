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

TERMS = {"pixel": "L1 of a batch", "usage3": "codes used in a batch, %"}  # of a history, as the axis names them
SMOOTHING = 0.9  # weight of the past in a curve's running mean


def curves(histories: Mapping[str, list[list[dict[str, float]]]], path: Path) -> bool:
    """Draw L1 and usage over the steps, one line per method: mean over its seeds, smoothed; PNG.

    Returns whether there was anything to draw; otherwise no file is written.
    """
    terms = {
        term: lines for term in TERMS if (lines := {name: _mean_line(runs, term) for name, runs in histories.items()})
        and any(steps for steps, _ in lines.values())
    }  # fmt: skip
    if not terms:
        return False
    plt = pyplot()
    names = [name for name in histories if any(lines[name][0] for lines in terms.values())]
    columns = min(5, len(names))
    height = 3.6 + 0.25 * -(-len(names) // columns)
    figure, axes = plt.subplots(1, len(terms), figsize=(5.4 * len(terms), height), squeeze=False, layout="constrained")
    for axis, (term, lines) in zip(axes[0], terms.items(), strict=True):
        for number, name in enumerate(names):
            steps, values = lines[name]
            axis.plot(steps, values, label=name, linewidth=1.3, **_line_style(plt, number))
        axis.set(xlabel="optimizer step", ylabel=TERMS[term])
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    save_figure(figure, path)
    return True


def usage(counts: Mapping[str, Tensor], path: Path) -> None:
    """Draw how often each code occurs, most used first, one panel per method, from {name: k counts}; PNG."""
    plt = pyplot()
    columns = min(5, len(counts))
    lines = -(-len(counts) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(max(2.3 * columns, 3.2), max(1.9 * lines, 2.4)), squeeze=False, layout="constrained",
        sharey=True,
    )  # fmt: skip
    for axis in axes.flat[len(counts) :]:
        axis.set_axis_off()
    for number, (axis, (name, count)) in enumerate(zip(axes.flat, counts.items(), strict=False)):
        share = 100 * count.double().sort(descending=True).values / count.sum().clamp(min=1)
        axis.fill_between(
            range(len(share)), share.clamp(min=1e-3), 1e-3, step="mid", color=_line_style(plt, number)["color"]
        )
        axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel("codes, most used first", fontsize=9)
    figure.supylabel("share of places, %", fontsize=9)
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


def _mean_line(runs: list[list[dict[str, float]]], term: str) -> tuple[list[float], list[float]]:
    """Steps and smoothed values of a term, mean over the seeds; empty if a seed does not have it."""
    rows = [[row for row in run if term in row] for run in runs]
    length = min(map(len, rows), default=0)
    if not length:
        return [], []
    mean = torch.tensor([[row[term] for row in run[:length]] for run in rows]).mean(0)
    return [row["step"] for row in rows[0][:length]], _smooth(mean)


def _line_style(plt: Any, number: int) -> dict[str, Any]:
    """A colour and dashes: ten colours, and other dashes for each further ten."""
    return {"color": plt.get_cmap("tab10")(number % 10), "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
