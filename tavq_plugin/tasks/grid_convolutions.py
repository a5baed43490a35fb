"""Convolutions on the grids of an image's tokens: what each place learns of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.tasks.tokens import LevelGrid


class GridConvolutions(nn.Module):
    """Two residual 3 × 3 convolutions on each grid of a sequence; b n d -> b n d.

    Several codes side by side make up a shape. Convolutions know from the first step which codes are neighbours, and
    a transformer must learn it: with them, a captioner needs about half the steps.

    Raises ValueError for a sequence that is not that of the grids.
    """

    def __init__(self, grids: Sequence[LevelGrid], width: int) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.of_grids = nn.ModuleList(nn.Sequential(_Residual(width), _Residual(width)) for _ in self.grids)

    def forward(self, places: Tensor) -> Tensor:
        """What each place knows of its neighbourhood; b n d -> b n d."""
        sizes = [grid.height * grid.width for grid in self.grids]
        if places.shape[1] != sum(sizes):
            raise ValueError(f"got {places.shape[1]} places: the grids {self.grids} have {sum(sizes)}")
        parts = []
        for grid, convolutions, part in zip(self.grids, self.of_grids, places.split(sizes, 1), strict=True):
            x = convolutions(rearrange(part, "b (h w) d -> b d h w", h=grid.height))
            parts.append(rearrange(x, "b d h w -> b (h w) d"))
        return torch.cat(parts, 1)


class _Residual(nn.Module):
    """b d h w -> b d h w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(nn.GroupNorm(1, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)
