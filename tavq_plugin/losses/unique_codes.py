"""A head on rows of which many are equal: its products are made once for each, its gradients are those of every row."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


def on_shared(head: nn.Sequential, x: Tensor, group: Tensor) -> Tensor:
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
