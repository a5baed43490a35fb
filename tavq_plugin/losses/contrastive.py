"""Contrastive losses over the batch: an image's codes should be nearer to its own text than to another's."""

from __future__ import annotations

from typing import Any, NamedTuple

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

    Points are averaged by their masses and units by their weights, and both means are normalised. The logits are their
    cosines divided by `temperature` (InfoNCE in both directions, as in CLIP). Images without text are neither queries
    nor keys; with fewer than two images with text the loss is exactly 0. In distributed training each process compares
    its own images with the texts of all processes, and its texts with all images, and weights the loss by its share of
    the images with text: the mean over the processes is the loss of the whole batch, and so is its gradient.
    """
    codes = PointClouds(points[None], masses[None])
    return level_contrasts(codes, point_clouds_of([units], points.dtype), temperature=temperature)[0]


def level_contrasts(codes: PointClouds, text: PointClouds, *, temperature: float = 0.1) -> Tensor:
    """`batch_contrast` of all levels; l b n d, l b m d -> l."""
    image, own_text, has_text = codes.pooled(), text.pooled(), text.nonempty
    keys = _gather_keys(image, own_text, has_text)
    value = _symmetric_cross_entropy(
        image @ keys.texts.mT / temperature,
        own_text @ keys.images.mT / temperature,
        has_text,
        keys.has_text,
        keys.first,
    )
    if _process_count() == 1:
        return value
    return value * (_process_count() * has_text.sum(1)) / keys.has_text.sum(1).clamp(min=1)


def transport_contrast(
    points: Tensor, masses: Tensor, units: Units, *, temperature: float = 0.1, **options: Any
) -> Tensor:
    """`batch_contrast` with transport values in place of cosines; b n d, b n, b m d -> scalar.

    One call of `solve`, with its `options`, transports every image onto every text (b² problems). Points have unit
    length, so that −value / 2 is on the scale of a cosine (|x − y|² = 2 − 2 x·y). Each problem gets the
    products of its points with its units: b² n m numbers instead of b² n d. Each process compares its own batch only.
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
    logits, has_text = value.view(1, b, b) / -2 / temperature, units.mask.any(1)[None]
    return _symmetric_cross_entropy(logits, logits.mT, has_text, has_text, 0)[0]


def _symmetric_cross_entropy(
    image_logits: Tensor, text_logits: Tensor, has_text: Tensor, key_has_text: Tensor, first: int
) -> Tensor:
    """Mean cross-entropy of images against texts and of texts against images; l b k, l b k, l b, l k -> l.

    Query i belongs to key `first` + i.
    """
    levels, b = has_text.shape
    own = first + torch.arange(b, device=has_text.device)
    weight = has_text.to(image_logits)
    lowest = torch.finfo(image_logits.dtype).min
    logits = torch.stack([image_logits, text_logits]).masked_fill(~key_has_text[:, None], lowest)
    each = F.cross_entropy(logits.flatten(0, 2), own.repeat(2 * levels), reduction="none").view(2, levels, b)
    return (each * weight).sum((0, 2)) / weight.sum(1).clamp(min=1) / 2


def _process_count() -> int:
    """How many processes train together; 1 without gradient, as each then compares its own images only."""
    training = torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if training else 1


class _Gather(torch.autograd.Function):
    """The tensors of all ranks, in order; the gradient is the sum over the ranks; ... -> r ....

    `torch.distributed.nn.functional.all_gather` is deprecated, and over gloo its backward is wrong where the incoming
    gradient is not contiguous (torch 2.14).
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
        grad = grad.clone(memory_format=torch.contiguous_format)  # a collective overwrites its argument
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


class _Keys(NamedTuple):
    """What the queries of this process are compared with; k is b without distributed training."""

    images: Tensor  # l k d
    texts: Tensor  # l k d
    has_text: Tensor  # l k bool
    first: int  # index of this process's first key


def _gather_keys(image: Tensor, text: Tensor, has_text: Tensor) -> _Keys:
    """The images and texts of all ranks, in order, with gradient, padded to equal lengths; l b d, l b d, l b."""
    if _process_count() == 1:
        return _Keys(image, text, has_text, 0)
    b = has_text.shape[1]
    longest = torch.tensor([b], device=has_text.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    pad = int(longest) - b
    images, texts = (
        rearrange(_Gather.apply(F.pad(part, (0, 0, 0, pad))), "r l b d -> l (r b) d") for part in (image, text)
    )
    gathered = rearrange(_Gather.apply(F.pad(has_text.to(image), (0, pad))), "r l b -> l (r b)")
    return _Keys(images, texts, gathered > 0, dist.get_rank() * int(longest))
