"""The batch contrast over two processes: what each rank computes, and the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tavq_plugin.losses.contrastive import level_contrasts
from tavq_plugin.losses.point_clouds import PointClouds


def whole_batch(levels: int, images: int, without_text: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, text units, and the units' masses, 0 for the images without text; l b n d, l b m d, l b m."""
    draw = torch.Generator().manual_seed(7)
    codes = torch.randn(levels, images, 3, 5, generator=draw, dtype=torch.float64)
    units = torch.randn(levels, images, 2, 5, generator=draw, dtype=torch.float64)
    masses = torch.full((levels, images, 2), 0.5, dtype=torch.float64)
    masses[:, list(without_text)] = 0
    return codes, units, masses


def loss_and_gradients(codes: Tensor, units: Tensor, masses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of all levels' contrasts, and its gradient to the codes and the units."""
    codes, units = codes.clone().requires_grad_(), units.clone().requires_grad_()
    seen = PointClouds(codes, codes.new_full(codes.shape[:3], 1 / codes.shape[2]))
    loss = level_contrasts(seen, PointClouds(units, masses)).sum()
    return loss.detach(), *torch.autograd.grad(loss, (codes, units))


def of_one_rank(levels: int, counts: tuple[int, int], without_text: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The same on this rank's part of the batch; `counts` are the numbers of images of the two ranks."""
    begin = sum(counts[: dist.get_rank()])
    own = slice(begin, begin + counts[dist.get_rank()])
    return loss_and_gradients(*(part[:, own] for part in whole_batch(levels, sum(counts), without_text)))
