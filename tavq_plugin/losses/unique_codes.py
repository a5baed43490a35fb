"""Merge equal codes, so that each is projected and transported once, with the gradient of all its places."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
    rows = torch.arange(len(group), device=group.device)
    first = rows.new_full((int(group.max()) + 1,), len(group)).scatter_reduce_(0, group, rows, "amin")
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


def merge_repeated_codes(codes: Tensor, indices: Tensor) -> UniqueCodes:
    """Merge the equal codes of each image into one point with their joint mass; b c h w, b h w -> UniqueCodes.

    This is exact for every transport cost, because equal points have equal plans. Each place gets its share of its
    point's gradient, as if it were transported alone. u is the largest number of distinct codes in an image. If
    codes with the same index are unequal (a residual quantizer gives the indices of its first stage), none are merged.
    A code that is not finite equals no other: its point is not finite, and its number is shared with no other image.
    """
    b, c, h, w = codes.shape
    k = int(indices.max()) + 1
    offset = torch.arange(b, device=indices.device)[:, None] * k
    distinct, group, count = _distinct((indices.flatten(1) + offset).flatten(), b * k)
    flat = rearrange(codes, "b c h w -> (b h w) c")
    count = count.to(codes.dtype)
    mean = codes.new_zeros(len(distinct), c).index_add(0, group, flat) / count[:, None]
    signature, merged, image = _signature(flat), _signature(mean), distinct // k
    largest = signature.abs().masked_fill(~signature.isfinite(), 0.0).view(b, -1).amax(1)
    if not _equal(signature, merged[group], largest.repeat_interleave(h * w)):
        place = torch.arange(len(flat), device=flat.device)
        return UniqueCodes(flat, place, flat.new_full((b, h * w), 1 / (h * w)), place)
    per_image = torch.bincount(image, minlength=b)
    u = int(per_image.max())
    slot = torch.arange(len(distinct), device=image.device) - (per_image.cumsum(0) - per_image)[image] + image * u
    masses = torch.zeros(b * u, device=codes.device, dtype=codes.dtype).index_copy(0, slot, count / (h * w))
    own = k + torch.arange(len(distinct), device=image.device)  # no two points share these numbers
    used, number, _ = _distinct(torch.where(merged.isfinite(), distinct - image * k, own), k + len(distinct))
    any_of = merged.new_empty(len(used)).index_copy(0, number, merged)
    if not _equal(merged, any_of[number], largest[image]):
        number = torch.arange(len(number), device=number.device)
    return UniqueCodes(mean, slot, masses.view(b, u), number)


def _distinct(values: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers below `size` that occur, each value's place among them, and their counts; n -> p, n, p."""
    if size > 16 * len(values):  # sorting the values is faster than reading a table of all numbers
        return values.unique(return_inverse=True, return_counts=True)
    counts = torch.bincount(values, minlength=size)
    occurs = counts > 0
    distinct = occurs.nonzero()[:, 0]
    return distinct, (occurs.cumsum(0) - 1)[values], counts[distinct]


@torch.no_grad()
def _signature(codes: Tensor) -> Tensor:
    """A fixed projection of each code to one number; unequal codes almost never share theirs; p c -> p."""
    direction = (
        torch.arange(1, codes.shape[1] + 1, device=codes.device, dtype=codes.dtype) * 0.7548776662
    ).frac() - 0.5
    return codes @ direction


def _equal(codes: Tensor, others: Tensor, largest: Tensor) -> bool:
    """Whether all signatures agree, up to rounding at the size of their image's largest; ignores those not finite."""
    off = (codes - others).abs_()
    return bool(((off <= 1e-3 * largest) | ~off.isfinite()).all())
