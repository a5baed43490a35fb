"""Where the transport of an alignment places each unit of a text in the picture."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.types import Units


@torch.no_grad()
def plan_maps(align: TextAlignment, quantized: Tensor, units: Units, level: int) -> Tensor:
    """The mass of the plan that goes from each place to each unit; b c h w, b m d -> b m h w, padding 0.

    Raises ValueError if the widths, or the numbers of images and texts, differ.
    """
    plan = align.match(quantized, units, level).plan()
    return rearrange(plan, "b (h w) m -> b m h w", h=quantized.shape[2])
