"""Diagnostics of the codes and their alignment in the history's rows, read once in a while and outside the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from tavq_plugin.losses.diagnostics import Diagnostics
from tavq_plugin.losses.effective_rank import effective_rank
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.tavq import TAVQ

if TYPE_CHECKING:
    from tavq_plugin.training.loop import TrainingLoop

Row = Mapping[str, float]
ALWAYS = "effective_rank_1"  # in every row with diagnostics


def with_diagnostics(loop: TrainingLoop, row: dict[str, float], history: Sequence[Row]) -> dict[str, float]:
    """The row with the diagnostics of its step, if they are due; else the row as it is.

    Every process calls it, with the rows so far. Training is not changed, and no random number is drawn.
    """
    return {**row, **diagnostic_figures(loop)} if is_due(loop, row, history) else row


def is_due(loop: TrainingLoop, row: Row, history: Sequence[Row]) -> bool:
    """Whether diagnostics belong in a row: `diagnose_every` steps after the former ones, and in the last row.

    A step without codes has none, nor has one between two alignments of `TAVQ`: they come with its next row.
    """
    every, step = loop.recipe.diagnose_every, row["step"]
    between = isinstance(loop.method, TAVQ) and "alignment" not in row
    if not every or step < loop.phase.first_coded or between:
        return False
    former = next((other["step"] for other in reversed(history) if ALWAYS in other), -1)
    return step - former >= every or loop.number == loop.phase.last


def diagnostic_figures(loop: TrainingLoop) -> dict[str, float]:
    """effective_rank_1…, own_minus_other_1… by level, and gradient_ratio_… by tensor, of the step's last pass.

    Each is the mean over the processes that have it, of their own images; one that is not finite anywhere is left out.
    """
    codes = [level.quantized for level in loop.module.last.codes.levels]
    own = {"effective_rank": torch.stack([effective_rank(level) for level in codes])}
    names: dict[str, list[str]] = {}
    align = getattr(loop.method, "align", None)
    last = align.last if isinstance(align, TextAlignment) else Diagnostics()
    if "own_minus_other" in last:
        own["own_minus_other"] = last["own_minus_other"]
    if "gradient_ratio" in last:
        own["gradient_ratio"] = last["gradient_ratio"]
        names["gradient_ratio"] = [name.replace(" (", "_").rstrip(")") for name in last.gradient_names]
    figures: dict[str, float] = {}
    for figure, values in own.items():
        labels = names.get(figure) or range(1, len(values) + 1)
        figures |= {f"{figure}_{label}": value for label, value in zip(labels, values.tolist(), strict=True)}
    return _means(gather_object([figures]))


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """Mean of each figure over the rows where it is finite."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if math.isfinite(value):
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
