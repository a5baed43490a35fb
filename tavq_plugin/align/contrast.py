"""A contrast over the batch beside the transport: an image's codes should be nearer its own text than another's."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
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
    with fewer than two left the contrast is exactly 0. Of several processes that train, each contrasts its own images
    with the texts of all, and its texts with the images of all, so that their mean is that of the whole batch.
    """
    image, text, present = pooled(points, masses), pooled(*text_measure(units, points.dtype)), units.mask.any(1)
    images, texts, everyone, first = _of_all(image, text, present)
    return _symmetric(image @ texts.T / temperature, text @ images.T / temperature, present, everyone, first)


def transport_contrast(
    points: Tensor, masses: Tensor, units: Units, *, temperature: float = 0.1, **options: Any
) -> Tensor:
    """The same with the transport between every image and every text in place of cosines; b n d, b n, b m d -> scalar.

    b² problems in one call of `solve`, whose `options` these are. Points are of unit length, so that −value / 2 lies
    on the scale of a cosine (|x − y|² = 2 − 2 x·y), and a problem may see its points by their products with its units
    alone: b² n m numbers instead of b² n d. Each process contrasts its own batch.
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
    logits, present = value.view(b, b) / -2 / temperature, units.mask.any(1)
    return _symmetric(logits, logits.T, present, present, 0)


def _symmetric(of_images: Tensor, of_texts: Tensor, present: Tensor, everyone: Tensor, first: int) -> Tensor:
    """Cross-entropy of images against texts and of texts against images, own with own; b k, b k, b, k -> scalar.

    Own keys lie from `first` on among the k.
    """
    own = first + torch.arange(len(present), device=present.device)
    there = present.to(of_images)
    total, lowest = of_images.new_zeros(()), torch.finfo(of_images.dtype).min
    for side in (of_images, of_texts):
        each = F.cross_entropy(side.masked_fill(~everyone[None], lowest), own, reduction="none")
        total = total + (each * there).sum() / there.sum().clamp(min=1)
    return total / 2


def _of_all(image: Tensor, text: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Keys of all processes in the ranks' order, with gradient, padded alike, and where one's own begin."""
    training = torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()
    if not training or dist.get_world_size() == 1:
        return image, text, present, 0
    from torch.distributed.nn.functional import all_gather

    longest = torch.tensor([len(present)], device=present.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    pad = int(longest) - len(present)
    there = F.pad(present.to(image), (0, pad))
    seen = [torch.empty_like(there) for _ in range(dist.get_world_size())]
    dist.all_gather(seen, there)
    images, texts = (torch.cat(all_gather(F.pad(part, (0, 0, 0, pad)).contiguous())) for part in (image, text))
    return images, texts, torch.cat(seen) > 0, dist.get_rank() * int(longest)
