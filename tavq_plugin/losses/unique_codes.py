"""Equal codes, merged: each is projected and transported once, with the gradient of all its places."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _SharedLinear(torch.autograd.Function):
    """F.linear of one row a group, given to all of it; p c, group p -> p d.

    A row's own gradient goes through its own product; the weight's needs the sum over each group alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor, group: Tensor) -> Tensor:
        few = x[first]
        ctx.save_for_backward(few, weight, group)
        ctx.has_bias = bias is not None
        return F.linear(few, weight, bias)[group]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        few, weight, group = ctx.saved_tensors
        to_few = grad.new_zeros(len(few), grad.shape[1]).index_add_(0, group, grad)
        return grad @ weight, to_few.mT @ few, to_few.sum(0) if ctx.has_bias else None, None, None


def apply_once_per_code(head: nn.Sequential, x: Tensor, group: Tensor) -> Tensor:
    """What `head` makes of rows that are equal within a group, and its gradient; p c, p -> p d.

    Linear layers work on one row a group; what lies between them, elementwise, on all. Groups are numbered from 0 on,
    none is empty.
    """
    rows = torch.arange(len(group), device=group.device)
    first = rows.new_full((int(group.max()) + 1,), len(group)).scatter_reduce_(0, group, rows, "amin")
    if 2 * len(first) > len(group):  # hardly any are shared
        return head(x)
    for layer in head:
        shared = isinstance(layer, nn.Linear)
        x = _SharedLinear.apply(x, layer.weight, layer.bias, first, group) if shared else layer(x)
    return x


class UniqueCodes(NamedTuple):
    """The distinct codes of the images, one after another, and their places in a padded batch."""

    distinct: Tensor  # p c
    slot: Tensor  # p, of each in (b u)
    masses: Tensor  # b u, the share of the image's places with that code, 0 where padded
    group: Tensor  # p, of each its number among the codes of the whole batch, which images share

    def pad(self, points: Tensor) -> Tensor:
        """What was made of the distinct codes, 0 where padded; p d -> b u d."""
        b, u = self.masses.shape
        return points.new_zeros(b * u, points.shape[1]).index_copy(0, self.slot, points).view(b, u, -1)


def merge_repeated_codes(codes: Tensor, indices: Tensor) -> UniqueCodes:
    """Equal codes of an image merged into one point with their joint mass; b c h w, b h w -> Collapsed.

    Exact for every transport cost: equal points are matched alike. Each place's gradient is its share of its
    point's, as if it had been transported on its own. u is the most distinct codes an image has. Where codes of one
    index are unequal (a residual quantizer's indices are its first stage's), none are merged. A code that is not finite
    is equal to none: its image's point is not finite, and no other image has that point's number.
    """
    b, c, h, w = codes.shape
    k = int(indices.max()) + 1
    offset = torch.arange(b, device=indices.device)[:, None] * k
    distinct, group, count = _distinct((indices.flatten(1) + offset).flatten(), b * k)
    flat = rearrange(codes, "b c h w -> (b h w) c")
    count = count.to(codes.dtype)
    mean = codes.new_zeros(len(distinct), c).index_add(0, group, flat) / count[:, None]
    seen, merged, image = _signature(flat), _signature(mean), distinct // k
    largest = seen.abs().masked_fill(~seen.isfinite(), 0.0).view(b, -1).amax(1)
    if not _equal(seen, merged[group], largest.repeat_interleave(h * w)):
        every = torch.arange(len(flat), device=flat.device)
        return UniqueCodes(flat, every, flat.new_full((b, h * w), 1 / (h * w)), every)
    held = torch.bincount(image, minlength=b)
    u = int(held.max())
    slot = torch.arange(len(distinct), device=image.device) - (held.cumsum(0) - held)[image] + image * u
    masses = torch.zeros(b * u, device=codes.device, dtype=codes.dtype).index_copy(0, slot, count / (h * w))
    own = k + torch.arange(len(distinct), device=image.device)  # numbers that no two points share
    used, number, _ = _distinct(torch.where(merged.isfinite(), distinct - image * k, own), k + len(distinct))
    any_of = merged.new_empty(len(used)).index_copy(0, number, merged)
    if not _equal(merged, any_of[number], largest[image]):
        number = torch.arange(len(number), device=number.device)
    return UniqueCodes(mean, slot, masses.view(b, u), number)


def _distinct(values: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which numbers below `size` occur, of each value its place among them, and how often each does; n -> p, n, p."""
    if size > 16 * len(values):  # a table of all would be longer to read than the values to sort
        return values.unique(return_inverse=True, return_counts=True)
    counts = torch.bincount(values, minlength=size)
    there = counts > 0
    distinct = there.nonzero()[:, 0]
    return distinct, (there.cumsum(0) - 1)[values], counts[distinct]


@torch.no_grad()
def _signature(codes: Tensor) -> Tensor:
    """One number a code, the same for equal codes and hardly ever for others: a fixed projection; p c -> p."""
    along = (torch.arange(1, codes.shape[1] + 1, device=codes.device, dtype=codes.dtype) * 0.7548776662).frac() - 0.5
    return codes @ along


def _equal(codes: Tensor, others: Tensor, largest: Tensor) -> bool:
    """Whether all signatures are the others, but for rounding of their image's largest; passes over the not finite."""
    off = (codes - others).abs_()
    return bool(((off <= 1e-3 * largest) | ~off.isfinite()).all())
