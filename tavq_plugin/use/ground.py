"""Where each unit of a text lies in an image, by the transport plans of a run's heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from tavq_plugin.evaluation.plan_maps import plan_maps
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.text.store import TextStore
from tavq_plugin.use.run_data import with_means

NEAR_UNIFORM = 0.99  # share of the maximum entropy from which a unit's plan says nothing about a place


@dataclass(frozen=True)
class LevelGrounding:
    """The units of one granularity on the grid of one level."""

    level: int  #: from 1
    granularity: str  #: word, phrase or sentence
    units: list[str]  #: m
    plan: Tensor  #: m h w float32: mass of the plan from each place to each unit; all of a level sum to 1
    heat: NDArray[np.float32]  #: m r r: a unit's mass at each pixel, in units of what a uniform plan gives; 1 = uniform
    entropy: Tensor  #: m: entropy of a unit's mass over the places, as a share of the maximum
    near_uniform: Tensor  #: m bool: an entropy from `NEAR_UNIFORM` on: the plan says nothing about the place


@dataclass(frozen=True)
class Grounding:
    """A text in an image, level by level; `levels[0]` is level 1."""

    image: Tensor  #: 3 r r uint8, as the run's recipe sizes it
    text: str
    levels: tuple[LevelGrounding, ...]

    @property
    def units(self) -> dict[str, list[str]]:
        """The units of each granularity."""
        return {level.granularity: level.units for level in self.levels}

    @property
    def plans(self) -> tuple[Tensor, ...]:
        """The plan of each level, m h w."""
        return tuple(level.plan for level in self.levels)

    @property
    def heat_maps(self) -> tuple[NDArray[np.float32], ...]:
        """The heat maps of each level, m r r."""
        return tuple(level.heat for level in self.levels)


def ground_text(
    tokenizer: Tokenizer,
    align: TextAlignment,
    image: Tensor,
    text: str,
    *,
    encoder: Any,
    means: Mapping[str, Tensor],
) -> Grounding:
    """The plans and heat maps of one text in one image, 3 r r uint8.

    Args:
        tokenizer: Of the run.
        align: The heads that were trained with it.
        image: 3 r r uint8, of the size that the run was trained at.
        text: In English, as the texts of the run are.
        encoder: Encodes the units; the one that the run was trained with.
        means: The mean of the training texts' units, by granularity.

    Raises:
        ValueError: The text has no unit, such as one in an unsupported language, or its vectors have another width
            than the run's.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    store = with_means(TextStore.build([text], encoder), means)
    empty = [granularity for granularity in align.levels if not store.units(0, granularity)]
    if "word" in empty or len(empty) == len(align.levels):
        raise ValueError(
            f"no word was found in {text[:60]!r}: write English with at least one noun, adjective, verb or number, as "
            "in the texts that runs are trained on"
        )
    batch, side = store.batch(rows=[0]), image.shape[-1]
    levels = []
    with eval_without_trace(tokenizer), eval_without_trace(align):
        device = next(tokenizer.parameters()).device
        codes = tokenizer.encode(to_float(image[None].to(device)))
        for index, (level, granularity) in enumerate(zip(codes.levels, align.levels, strict=True)):
            units = store.units(0, granularity)
            if units:
                plan = plan_maps(align, level.quantized, batch[granularity].to(device), index)[0, : len(units)].cpu()
            else:
                plan = torch.zeros(0, *level.indices.shape[1:3])
            entropy = entropy_shares(plan)
            levels.append(
                LevelGrounding(
                    index + 1, granularity, units, plan, heat_maps(plan, side), entropy, entropy >= NEAR_UNIFORM
                )
            )
    return Grounding(image, text, tuple(levels))


def entropy_shares(plan: Tensor) -> Tensor:
    """Entropy of each unit's mass over the places, as a share of the maximum; m h w -> m. 1: a uniform plan.

    >>> entropy_shares(torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]]))
    tensor([1., 0.])
    """
    mass = rearrange(plan.double(), "m h w -> m (h w)")
    share = mass / mass.sum(1, keepdim=True).clamp(min=1e-300)
    places = share.shape[1]
    entropy = -torch.xlogy(share, share).sum(1) / (log(places) if places > 1 else 1.0)
    return entropy.abs().float()


def heat_maps(plan: Tensor, side: int) -> NDArray[np.float32]:
    """Each unit's mass, bilinearly sized to an image, in units of what a uniform plan gives; m h w -> m r r.

    >>> heat_maps(torch.tensor([[[0.3, 0.1]]]), 2).round(3).tolist()
    [[[1.5, 0.5], [1.5, 0.5]]]
    """
    if not len(plan):
        return np.zeros((0, side, side), dtype=np.float32)
    times = plan / plan.mean((1, 2), keepdim=True).clamp(min=1e-30)
    return F.interpolate(times[None].float(), (side, side), mode="bilinear", align_corners=False)[0].numpy()
