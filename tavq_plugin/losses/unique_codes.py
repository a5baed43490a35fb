"""Merge equal codes, so that each is projected and transported once, with the gradient of all its places."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# equal codes may be off by their own size plus their latent's, times this and the precision of their numbers
ROUNDING = 32


class _SharedLinear(torch.autograd.Function):
    """F.linear computed once per group of equal rows; p c, group p -> p d.

    Each row gets its own gradient; the weight's gradient needs only the sum over each group.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor, group: Tensor) -> Tensor:
        distinct_rows = x[first]
        ctx.save_for_backward(distinct_rows, weight, group)
        ctx.has_bias = bias is not None
        return F.linear(distinct_rows, weight, bias)[group]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        distinct_rows, weight, group = ctx.saved_tensors
        grad_of_groups = grad.new_zeros(len(distinct_rows), grad.shape[1]).index_add_(0, group, grad)
        return (
            grad @ weight,
            grad_of_groups.mT @ distinct_rows,
            grad_of_groups.sum(0) if ctx.has_bias else None,
            None,
            None,
        )


def apply_once_per_code(head: nn.Sequential, x: Tensor, group: Tensor) -> Tensor:
    """`head` on rows that are equal within each group; p c, p -> p d.

    Linear layers process one row per group; the elementwise layers between them process all rows. Groups are numbered
    from 0, and none is empty.
    """
    if not len(group):
        return head(x)
    first = _first_of_each(group, int(group.max()) + 1)
    if 2 * len(first) > len(group):  # few rows are shared
        return head(x)
    for layer in head:
        shared = isinstance(layer, nn.Linear)
        x = _SharedLinear.apply(x, layer.weight, layer.bias, first, group) if shared else layer(x)
    return x


class UniqueCodes(NamedTuple):
    """The distinct codes of all images, one image after another, and their places in a padded batch."""

    distinct: Tensor  # p c
    slot: Tensor  # p, the place of each code in (b u)
    masses: Tensor  # b u, the share of the image's places that have this code, 0 where padded
    group: Tensor  # p, the number of each code among those of all images; equal codes share it

    def pad(self, points: Tensor) -> Tensor:
        """Points of the distinct codes as a batch, 0 where padded; p d -> b u d."""
        b, u = self.masses.shape
        return points.new_zeros(b * u, points.shape[1]).index_copy(0, self.slot, points).view(b, u, -1)


def merge_repeated_codes(codes: Tensor, indices: Tensor, latent: Tensor | None = None) -> UniqueCodes:
    """Merge the equal codes of each image into one point with their joint mass; b c h w, b h w -> UniqueCodes.

    This is exact for every transport cost, because equal points have equal plans. Each place gets its share of its
    point's gradient, as if it were transported alone. u is the largest number of distinct codes in an image. If
    codes with the same index are unequal (a residual quantizer gives the indices of its first stage), none are merged:
    every channel of every code is compared, up to rounding. A code that is not finite equals no other: its point is not
    finite, and its number is shared with no other image. Half precision is computed in float32.

    A place with the index −1 is masked: it has no mass and no gradient. An image of masked places alone has no points.

    Args:
        codes: Of every place.
        indices: Of every place; −1 where masked.
        latent: What was quantized, b c' h w. The sum x + (q − x) of a straight-through estimator rounds to the
            precision of the larger of the two. Default: codes are equal up to float32's rounding of their own size.

    Raises ValueError for an index below −1.
    """
    b, c, h, w = codes.shape
    codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
    if not indices.numel():
        return _without_points(codes)
    least, greatest = torch.stack(indices.aminmax()).tolist()
    if least < -1:
        raise ValueError(f"indices hold {least}: give 0 or more, or −1 for a masked place")
    flat, rounding = rearrange(codes, "b c h w -> (b h w) c"), _rounding(codes, latent).flatten()
    image = torch.arange(b, device=indices.device).repeat_interleave(h * w)
    index, slot = indices.flatten(), torch.arange(b * h * w, device=indices.device)
    places = codes.new_full((b, 1), h * w)  # with mass
    if least < 0:
        if greatest < 0:
            return _without_points(codes)
        slot = (index >= 0).nonzero()[:, 0]
        flat, rounding, image, index = flat[slot], rounding[slot], image[slot], index[slot]
        places = torch.bincount(image, minlength=b).clamp(min=1)[:, None].to(codes.dtype)
    k = int(greatest) + 1
    distinct, group, count = _distinct(index + image * k, b * k)
    first = _first_of_each(group, len(distinct))
    if not _equal(flat, rounding, first[group]):
        masses = torch.zeros(b * h * w, device=codes.device, dtype=codes.dtype).index_fill(0, slot, 1.0).view(b, h * w)
        return UniqueCodes(flat, slot, masses / places, torch.arange(len(flat), device=flat.device))
    count = count.to(codes.dtype)
    mean = codes.new_zeros(len(distinct), c).index_add(0, group, flat) / count[:, None]
    image = distinct // k
    per_image = torch.bincount(image, minlength=b)
    u = int(per_image.max())
    slot = torch.arange(len(distinct), device=image.device) - (per_image.cumsum(0) - per_image)[image] + image * u
    masses = torch.zeros(b * u, device=codes.device, dtype=codes.dtype).index_copy(0, slot, count).view(b, u) / places
    own = k + torch.arange(len(distinct), device=image.device)  # no two points share these numbers
    used, number, _ = _distinct(torch.where(mean.isfinite().all(1), distinct - image * k, own), k + len(distinct))
    if not _equal(flat[first], rounding[first], _first_of_each(number, len(used))[number]):
        number = torch.arange(len(number), device=number.device)
    return UniqueCodes(mean, slot, masses, number)


def every_place(codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Every place's code as a point of its own, and their masses; b c h w, b h w -> b n c, b n.

    This is `merge_repeated_codes` without merging: the same transport, in shapes that do not depend on the indices, so
    that nothing is read back from the device. A masked place (index −1) has no mass and no gradient. An index below −1
    makes its image NaN, as it could not be refused without reading it.
    """
    index = indices.flatten(1)
    points = rearrange(codes, "b c h w -> b (h w) c").to(torch.promote_types(codes.dtype, torch.float32))
    masked = index < 0
    masses = (~masked).to(points.dtype).masked_fill_(index < -1, torch.nan)
    return points.masked_fill(masked[..., None], 0.0), masses / masses.sum(1, keepdim=True).clamp(min=1)


def _without_points(codes: Tensor) -> UniqueCodes:
    """No place has mass: one padded point per image."""
    none = torch.zeros(0, dtype=torch.long, device=codes.device)
    return UniqueCodes(codes.flatten(2).mT.reshape(-1, codes.shape[1])[:0], none, codes.new_zeros(len(codes), 1), none)


def _distinct(values: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers below `size` that occur, each value's place among them, and their counts; n -> p, n, p."""
    if size > 16 * len(values):  # sorting the values is faster than reading a table of all numbers
        return values.unique(return_inverse=True, return_counts=True)
    counts = torch.bincount(values, minlength=size)
    occurs = counts > 0
    distinct = occurs.nonzero()[:, 0]
    return distinct, (occurs.cumsum(0) - 1)[values], counts[distinct]


def _first_of_each(group: Tensor, count: int) -> Tensor:
    """The first row of each group; p -> count. Groups are numbered from 0, and none is empty."""
    rows = torch.arange(len(group), device=group.device)
    return rows.new_full((count,), len(group)).scatter_reduce_(0, group, rows, "amin")


@torch.no_grad()
def _rounding(codes: Tensor, latent: Tensor | None) -> Tensor:
    """What each place's code may be off by rounding; b c h w, b c' h w -> b h w."""
    size = torch.maximum(codes.amax(1), -codes.amin(1))  # faster than |codes|
    if latent is None or latent.shape[2:] != codes.shape[2:]:
        return size * (ROUNDING * torch.finfo(torch.float32).eps)
    return (size + torch.maximum(latent.amax(1), -latent.amin(1))) * (ROUNDING * torch.finfo(codes.dtype).eps)


@torch.no_grad()
def _equal(codes: Tensor, rounding: Tensor, other: Tensor) -> bool:
    """Whether each code equals the one in row `other`, in every channel; ignores pairs that are not finite."""
    off = torch.linalg.vector_norm(codes.index_select(0, other).sub_(codes), torch.inf, dim=1)
    return bool(((off <= rounding + rounding[other]) | ~off.isfinite()).all())
