"""Point clouds of all levels and images in one padded batch: the input of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.types import Units


class PointClouds(NamedTuple):
    """One point cloud per level and image: points of unit length and their masses."""

    points: Tensor  # l b n d, of unit length, or 0: a vector without direction, and where padded
    masses: Tensor  # l b n, sum 1, or all 0 in an empty cloud; 0 where padded; a NaN is kept and counts as a mass

    @property
    def nonempty(self) -> Tensor:
        """Which point clouds have points; l b bool."""
        return (self.masses != 0).any(2)

    def level(self, index: int, *, trim: bool = True) -> tuple[Tensor, Tensor]:
        """Points and masses of one level; b n d, b n.

        `trim` removes the padding that only other levels need, which reads the masses back from the device.
        """
        if not trim:
            return self.points[index], self.masses[index]
        used = (self.masses[index] != 0).any(0).nonzero()
        n = int(used[-1]) + 1 if len(used) else 1
        return self.points[index, :, :n], self.masses[index, :, :n]

    def pooled(self) -> Tensor:
        """The direction of each point cloud's mean; l b d."""
        return pooled(self.points, self.masses)


def pooled(points: Tensor, masses: Tensor) -> Tensor:
    """The direction of the mean, weighted by the masses; ... n d, ... n -> ... d."""
    return F.normalize((masses[..., None, :] @ points)[..., 0, :], dim=-1)


def pad_levels(rows: Tensor, slots: Sequence[Tensor], masses: Sequence[Tensor]) -> PointClouds:
    """Levels of different sizes as one padded batch.

    Args:
        rows: The points of all levels, one level after another, p d.
        slots: The place of each point in its level's (b u), one tensor per level.
        masses: The masses, b u, one tensor per level.
    """
    levels, b, n = len(masses), len(masses[0]), max(part.shape[1] for part in masses)
    places = [
        i * b * n + slot + slot // part.shape[1] * (n - part.shape[1])
        for i, (slot, part) in enumerate(zip(slots, masses, strict=True))
    ]
    points = rows.new_zeros(levels * b * n, rows.shape[1]).index_copy(0, torch.cat(places), rows)
    return PointClouds(
        points.view(levels, b, n, rows.shape[1]), torch.stack([F.pad(part, (0, n - part.shape[1])) for part in masses])
    )


def point_clouds_of(units: Sequence[Units], dtype: torch.dtype) -> PointClouds:
    """Text units as point clouds; l × b m d -> l b m d."""
    m = max(1, *(part.mask.shape[1] for part in units))
    vectors = torch.stack([F.pad(part.embeddings.to(dtype), (0, 0, 0, m - part.mask.shape[1])) for part in units])
    mask = torch.stack([F.pad(part.mask, (0, m - part.mask.shape[1])) for part in units])
    weights = None
    if any(part.weights is not None for part in units):
        own = [part.mask.to(dtype) if part.weights is None else part.weights.to(dtype) for part in units]
        weights = torch.stack([F.pad(part, (0, m - part.shape[1])) for part in own])
    return PointClouds(*text_measure(Units(vectors, mask, weights), dtype))


def text_measure(units: Units, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Units as points of unit length, and masses that sum to 1 (0 without text); ... m d -> ... m d, ... m."""
    vectors = F.normalize(units.embeddings.to(dtype).masked_fill(~units.mask[..., None], 0.0), dim=-1)
    masses = units.mask.to(dtype) if units.weights is None else units.weights.to(dtype).masked_fill(~units.mask, 0.0)
    total = masses.sum(-1, keepdim=True)
    return vectors, masses / total.masked_fill(total == 0, 1.0)
