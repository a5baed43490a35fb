"""The transport plans of the images that a page shows: where the mass of each unit lies, and how much that says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from tavq_plugin.evaluation.plan_maps import plan_maps
from tavq_plugin.losses.code_distribution import CodeDistribution
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.text.splitter import Unit
from tavq_plugin.text.store import TextStore
from tavq_plugin.use.explore.sprites import packed, short
from tavq_plugin.use.ground import entropy_shares

BATCH = 32  # images
FULL = 0xFFFF  # the packed value of a unit's greatest mass


class UnitFigures(NamedTuple):
    """What a unit's map says. One value per unit."""

    mass: Tensor  # m, sums to 1
    entropy: Tensor  # m in 0..1, of the unit's mass over the places, as a share of the maximum; 1 is uniform
    rank: Tensor  # m int64 from 1: the place among the text's units, the most concentrated first
    peak: Tensor  # m, the mass at its peak, as a multiple of its mean over the places


def why_no_plans(align: TextAlignment | None, text_dim: int | None) -> str:
    """Why a run has no plans to show; "" if it has."""
    if align is None:
        return "This run has no heads that match codes with text, because it was trained without alignment."
    if any(cast(CodeDistribution, part).kind != "all" for part in align.distribution):
        return "This run matches samples of its codes with text, so its plans have no places."
    if text_dim is not None and text_dim != align.text_dim:
        return (
            f"The run's heads read texts of width {align.text_dim}, and the text encoder's are {text_dim} wide: it was "
            "trained with another encoder."
        )
    return ""


def level_plans(align: TextAlignment, quantized: Tensor, store: TextStore, level: int) -> list[Tensor]:
    """The plans, m h w, of n images with their own texts; n c h w, a store of n rows. The heads stay as they were."""
    granularity, device = align.levels[level], next(align.parameters()).device
    plans = list[Tensor]()
    with eval_without_trace(align):
        for start in range(0, len(quantized), BATCH):
            rows = range(start, min(start + BATCH, len(quantized)))
            units = store.batch(rows)[granularity].to(device)
            found = plan_maps(align, quantized[start : rows.stop].to(device), units, level).cpu()
            plans += [plan[: len(store.units(row, granularity))] for row, plan in zip(rows, found, strict=True)]
    return plans


def image_plan(plan: Tensor, names: Sequence[str], units: Sequence[Unit]) -> dict[str, Any]:
    """The plan of one image at one level, as content: its units with their figures, and its masses, packed; m h w.

    A mass is packed as a share of its unit's greatest mass: mass = peak × mean × value / 65535, with the mean over the
    places. `units` says where the names stand in the text.
    """
    places = {unit.text: [unit.start, unit.end] for unit in units}
    figures = unit_figures(plan)
    rows = [
        {"text": name, "span": places.get(name), "mass": short(figures.mass[i]), "entropy": short(figures.entropy[i]),
         "rank": int(figures.rank[i]), "peak": short(figures.peak[i])}
        for i, name in enumerate(names)
    ]  # fmt: skip
    shares = plan / plan.flatten(1).amax(1).clamp(min=1e-30)[:, None, None]
    entropy = short(place_entropy(plan)) if len(plan) else None
    return {"units": rows, "entropy": entropy, "masses": packed((shares * FULL).round().long())}


def unit_figures(plan: Tensor) -> UnitFigures:
    """What each unit's map says; m h w.

    >>> plan = torch.tensor([[[0.25, 0.25]], [[0.5, 0.0]]])
    >>> found = unit_figures(plan)
    >>> found.mass.tolist(), found.entropy.tolist(), found.rank.tolist(), found.peak.tolist()
    ([0.5, 0.5], [1.0, 0.0], [2, 1], [1.0, 2.0])
    """
    flat = plan.flatten(1).double()
    mass, places = flat.sum(1), flat.shape[1]
    entropy = entropy_shares(plan).double().clamp(max=1) if places > 1 else torch.ones(len(flat), dtype=torch.double)
    peak = flat.amax(1) / mass.clamp(min=1e-30) * places
    return UnitFigures(mass, entropy, entropy.argsort(stable=True).argsort() + 1, peak)


def place_entropy(plan: Tensor) -> float:
    """Mean entropy of a place's plan over the units, over that of the units' masses; m h w. 1: uniform, or one unit.

    >>> place_entropy(torch.tensor([[[0.5, 0.0]], [[0.0, 0.5]]])), place_entropy(torch.full((2, 1, 2), 0.25))
    (0.0, 1.0)
    """
    flat = plan.flatten(1).double()
    flat = flat / flat.sum().clamp(min=1e-30)
    mass, place = flat.sum(1), flat.sum(0)
    own = -torch.xlogy(mass, mass).sum().item()
    given = -torch.xlogy(flat, flat / place.clamp(min=1e-30)).sum().item()
    return abs(given) / own if own > 1e-12 else 1.0
