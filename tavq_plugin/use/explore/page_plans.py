"""The transport plans of the images that a page shows: where the mass of each unit lies, and how much that says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tavq_plugin.losses.code_distribution import CodeDistribution
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.text.store import TextStore
from tavq_plugin.types import Units

BATCH = 32  # images
NEAR_UNIFORM = 0.99  # share of the maximum entropy from which a plan says next to nothing


@dataclass(frozen=True)
class LevelPlans:
    """The plans of one level. Lists have one entry per image."""

    granularity: str
    names: Sequence[Sequence[str]]  #: the m units of each text
    plans: Sequence[Tensor]  #: m h w, the mass that goes from each place to each unit; sum 1
    entropy: Tensor  #: n, mean entropy of a place's plan over the units, as a share of the maximum; NaN without units


@dataclass(frozen=True)
class UnitFigures:
    """What a unit's map says. One value per unit."""

    mass: Tensor  #: m, sums to 1
    entropy: Tensor  #: m in 0..1, of the unit's mass over the places, as a share of the maximum; 1 is uniform
    rank: Tensor  #: m int64 from 1: the place among the text's units, the most concentrated first
    peak: Tensor  #: m, the mass at its peak, as a multiple of its mean over the places


class PlansNotAtHand(Exception):
    """The run has no plans to show; says why."""


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


def level_plans(align: TextAlignment, quantized: Tensor, store: TextStore, level: int) -> LevelPlans:
    """The plans of n images with their own texts; n c h w, a store of n rows. The heads stay as they were."""
    granularity, device = align.levels[level], next(align.parameters()).device
    plans, entropy = list[Tensor](), list[Tensor]()
    names = [store.units(row, granularity) for row in range(len(quantized))]
    with eval_without_trace(align):
        for start in range(0, len(quantized), BATCH):
            rows = range(start, min(start + BATCH, len(quantized)))
            part = quantized[start : rows.stop].to(device)
            found = _match(align, part, store.batch(rows)[granularity].to(device), level)
            entropy.append(found[1])
            plans += [mass[: len(names[row])] for row, mass in zip(rows, found[0], strict=True)]
    shares = torch.cat(entropy)
    return LevelPlans(
        granularity, names, plans, shares.masked_fill(torch.tensor([not unit for unit in names]), torch.nan)
    )


def _match(align: TextAlignment, quantized: Tensor, units: Units, level: int) -> tuple[Tensor, Tensor]:
    """Plan b m h w, and the share of the maximum entropy of a place's plan b, on the CPU."""
    found = align.match(quantized, units, level)
    h, w = quantized.shape[2:]
    return found.plan().mT.unflatten(2, (h, w)).cpu(), found.plan_entropy.cpu()


def unit_figures(plan: Tensor) -> UnitFigures:
    """What each unit's map says; m h w.

    >>> plan = torch.tensor([[[0.25, 0.25]], [[0.5, 0.0]]])
    >>> found = unit_figures(plan)
    >>> found.mass.tolist(), found.entropy.tolist(), found.rank.tolist(), found.peak.tolist()
    ([0.5, 0.5], [1.0, 0.0], [2, 1], [1.0, 2.0])
    """
    flat = plan.flatten(1).double()
    mass, places = flat.sum(1), flat.shape[1]
    share = flat / mass.clamp(min=1e-30)[:, None]
    entropy = -torch.special.xlogy(share, share).sum(1) / math.log(max(places, 2))
    entropy = (entropy if places > 1 else torch.ones_like(entropy)).clamp(0, 1) + 0.0
    rank = entropy.argsort(stable=True).argsort() + 1
    return UnitFigures(mass, entropy, rank, share.amax(1) * places)
