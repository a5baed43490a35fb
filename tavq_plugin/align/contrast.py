"""A contrast over the batch beside the transport: an image's codes should be nearer its own text than another's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.align.distribution import text_measure
from tavq_plugin.align.transport import solve
from tavq_plugin.contract import Units


def pooled(points: Tensor, masses: Tensor) -> Tensor:
    """The direction of the mean by masses; b n d, b n -> b d."""
    return F.normalize(torch.einsum("b n d, b n -> b d", points, masses), dim=-1)


def batch_contrast(points: Tensor, masses: Tensor, units: Units, *, temperature: float = 0.1) -> Tensor:
    """Symmetric cross-entropy of pooled codes against the pooled texts of the batch; b n d, b n, b m d -> scalar.

    Points are averaged by their masses, units by their weights, both normalised; the logits are their cosines over
    `temperature` (InfoNCE both ways, as in CLIP). Images without text take no part, neither as queries nor as keys;
    with fewer than two left the contrast is exactly 0. Each process contrasts its own images.
    """
    text = pooled(*text_measure(units, points.dtype))
    return _symmetric(pooled(points, masses) @ text.T / temperature, units.mask.any(1))


def transport_contrast(
    points: Tensor, masses: Tensor, units: Units, *, temperature: float = 0.1, **options: Any
) -> Tensor:
    """The same with the transport between every image and every text in place of cosines; b n d, b n, b m d -> scalar.

    b² problems in one call of `solve`, whose `options` these are. Points are of unit length, so that −value / 2 lies
    on the scale of a cosine (|x − y|² = 2 − 2 x·y), and a problem may see its points by their products with its units
    alone: b² n m numbers instead of b² n d.
    """
    b = len(points)
    vectors, weights = text_measure(units, points.dtype)
    m = vectors.shape[1]
    products = 2 * torch.einsum("i n d, j m d -> i j n m", points, vectors)
    value = solve(
        products.flatten(0, 1),
        torch.eye(m, dtype=points.dtype, device=points.device).expand(b * b, m, m),
        x_mask=(masses > 0).repeat_interleave(b, 0),
        x_weight=masses.repeat_interleave(b, 0),
        y_mask=units.mask.repeat(b, 1),
        y_weight=None if units.weights is None else weights.repeat(b, 1),
        **options | {"cost": "dot"},
    ).value
    return _symmetric(value.view(b, b) / -2 / temperature, units.mask.any(1))


def _symmetric(logits: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of images against texts and of texts against images, own with own; b b, b -> scalar."""
    own = torch.arange(len(logits), device=logits.device)
    there = present.to(logits)
    total, lowest = logits.new_zeros(()), torch.finfo(logits.dtype).min
    for side in (logits, logits.T):
        each = F.cross_entropy(side.masked_fill(~present[None], lowest), own, reduction="none")
        total = total + (each * there).sum() / there.sum().clamp(min=1)
    return total / 2
