"""A contrast over the batch beside the transport: an image's codes should be nearer its own text than another's."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from tavq_plugin.losses.point_clouds import PointClouds, point_clouds_of, text_measure
from tavq_plugin.ot.solve import solve
from tavq_plugin.types import Units


def batch_contrast(points: Tensor, masses: Tensor, units: Units, *, temperature: float = 0.1) -> Tensor:
    """Symmetric cross-entropy of pooled codes against the pooled texts of the batch; b n d, b n, b m d -> scalar.

    Points are averaged by their masses, units by their weights, both normalised; the logits are their cosines over
    `temperature` (InfoNCE both ways, as in CLIP). Images without text take no part, neither as queries nor as keys;
    with fewer than two left the contrast is exactly 0. Of several processes that train, each contrasts its own images
    with the texts of all, and its texts with the images of all, weighted by its share of the images with text, so that
    the mean over the processes is the contrast of the whole batch, and so is its gradient.
    """
    codes = PointClouds(points[None], masses[None])
    return level_contrasts(codes, point_clouds_of([units], points.dtype), temperature=temperature)[0]


def level_contrasts(codes: PointClouds, text: PointClouds, *, temperature: float = 0.1) -> Tensor:
    """`batch_contrast` of each level, at once; l b n d, l b m d -> l."""
    image, words, present = codes.pooled(), text.pooled(), text.there
    images, texts, everyone, first = _of_all(image, words, present)
    value = _symmetric(image @ texts.mT / temperature, words @ images.mT / temperature, present, everyone, first)
    if _processes() == 1:
        return value
    return value * (_processes() * present.sum(1)) / everyone.sum(1).clamp(min=1)


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
    logits, present = value.view(1, b, b) / -2 / temperature, units.mask.any(1)[None]
    return _symmetric(logits, logits.mT, present, present, 0)[0]


def _symmetric(of_images: Tensor, of_texts: Tensor, present: Tensor, everyone: Tensor, first: int) -> Tensor:
    """Cross-entropy of images against texts and of texts against images, own with own; l b k, l b k, l b, l k -> l.

    Own keys lie from `first` on among the k.
    """
    levels, b = present.shape
    own = first + torch.arange(b, device=present.device)
    there = present.to(of_images)
    logits = torch.stack([of_images, of_texts]).masked_fill(~everyone[:, None], torch.finfo(of_images.dtype).min)
    each = F.cross_entropy(logits.flatten(0, 2), own.repeat(2 * levels), reduction="none").view(2, levels, b)
    return (each * there).sum((0, 2)) / there.sum(1).clamp(min=1) / 2


def _processes() -> int:
    """How many processes train together; 1 without gradient, where each looks at its own images alone."""
    training = torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if training else 1


class _Gathered(torch.autograd.Function):
    """Every process's tensor, in the ranks' order; its gradient is the sum over the processes; ... -> r ....

    In place of `torch.distributed.nn.functional.all_gather`: its backward gives a wrong gradient over gloo where an
    incoming one is not contiguous (torch 2.14), and it is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # collectives write to their argument
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def _of_all(image: Tensor, text: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Keys of all processes in the ranks' order, with gradient, padded alike, and where one's own begin; l b d, l b."""
    if _processes() == 1:
        return image, text, present, 0
    b = present.shape[1]
    longest = torch.tensor([b], device=present.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    pad = int(longest) - b
    images, texts = (
        rearrange(_Gathered.apply(F.pad(part, (0, 0, 0, pad))), "r l b d -> l (r b) d") for part in (image, text)
    )
    there = rearrange(_Gathered.apply(F.pad(present.to(image), (0, pad))), "r l b -> l (r b)")
    return images, texts, there > 0, dist.get_rank() * int(longest)
