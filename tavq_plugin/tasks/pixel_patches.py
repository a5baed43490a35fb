"""The patch of pixels of each code as a vector of a transformer: what the upper bound reads in place of the codes."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.pixels import to_float
from tavq_plugin.tasks.tokens import LevelGrid


class PixelPatches(nn.Module):
    """Embeds the pixels that belong to each place of a grid; b 3 r r uint8 -> b n d.

    A linear map reads the pixels of a patch, and each place has a row of its own, as in `CodeEmbedding`.

    Raises ValueError if the grid does not divide the image.
    """

    def __init__(self, resolution: int, grid: LevelGrid, width: int) -> None:
        super().__init__()
        if resolution % grid.height or resolution % grid.width:
            raise ValueError(
                f"images of {resolution} pixels do not divide into {grid.height} × {grid.width} patches: resize the "
                "images to a multiple of the grid"
            )
        self.resolution, self.grid, self.grids = resolution, grid, (grid,)
        pixels = 3 * (resolution // grid.height) * (resolution // grid.width)
        self.rows = nn.Linear(pixels, width)
        self.place = nn.Parameter(0.02 * torch.randn(grid.height * grid.width, width))

    def forward(self, images: Tensor) -> Tensor:
        """b 3 r r uint8 -> b n d. ValueError for images of another size."""
        if tuple(images.shape[1:]) != (3, self.resolution, self.resolution):
            raise ValueError(
                f"got images of shape {tuple(images.shape[1:])}; this map reads 3 × {self.resolution} × "
                f"{self.resolution}"
            )
        height, width = self.grid.height, self.grid.width
        patches = rearrange(to_float(images), "b c (h p) (w q) -> b (h w) (c p q)", h=height, w=width)
        return self.rows(patches) + self.place
