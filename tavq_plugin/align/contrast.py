"""A contrast over the batch beside the transport: an image's codes should be nearer its own text than another's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.contract import Units


def batch_contrast(points: Tensor, masses: Tensor, units: Units, *, temperature: float = 0.1) -> Tensor:
    """Symmetric cross-entropy of pooled codes against the pooled texts of the batch; b n d, b n, b m d -> scalar.

    Points are averaged by their masses, units by their weights, both normalised; the logits are their cosines over
    `temperature` (InfoNCE both ways, as in CLIP). Images without text take no part, neither as queries nor as keys;
    with fewer than two left the contrast is exactly 0. Each process contrasts its own images.
    """
    present = units.mask.any(1)
    weights = units.mask.to(points) if units.weights is None else units.weights.to(points) * units.mask
    vectors = F.normalize(units.embeddings.to(points.dtype).masked_fill(~units.mask[..., None], 0.0), dim=-1)
    text = F.normalize(torch.einsum("b m d, b m -> b d", vectors, weights), dim=-1)
    pooled = F.normalize(torch.einsum("b n d, b n -> b d", points, masses), dim=-1)
    logits = pooled @ text.T / temperature
    absent = ~present
    own = torch.arange(len(logits), device=logits.device)
    there = present.to(logits)
    total = logits.new_zeros(())
    for side in (logits, logits.T):
        each = F.cross_entropy(side.masked_fill(absent[None, :], -1e4), own, reduction="none")
        total = total + (each * there).sum() / there.sum().clamp(min=1)
    return total / 2
