"""A codebook in two dimensions, and colours that are alike for codes that are alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CodebookPlane(NamedTuple):
    """Codes on the two directions in which their vectors vary most."""

    points: Tensor  # k 2, the greatest absolute value is 1
    explained: float  # share of the variance that these two directions hold


def codebook_plane(table: Tensor, used: Tensor) -> CodebookPlane:
    """The plane of the principal components of the used codes; k c, k bool -> k 2.

    Unused codes are projected too. The entry of greatest absolute value of each direction is positive.

    >>> table = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    >>> plane = codebook_plane(table, torch.ones(4, dtype=torch.bool))
    >>> plane.points.abs().tolist(), round(plane.explained, 3)
    ([[1.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, 0.5]], 1.0)
    """
    table = table.double()
    chosen = table[used] if int(used.sum()) > 2 else table
    mean = chosen.mean(0)
    _, values, directions = torch.linalg.svd(chosen - mean, full_matrices=False)
    directions = directions[:2]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    points = (table - mean) @ (directions * largest.sign()).T
    points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))  # a codebook of width 1
    energy = values.square()
    explained = (energy[:2].sum() / energy.sum().clamp(min=1e-30)).item()
    return CodebookPlane(points / points.abs().max().clamp(min=1e-30), explained)


def plane_colours(points: Tensor) -> Tensor:
    """A colour for each point of the plane; k 2 -> k 3 uint8.

    The first direction is lightness, and the second goes from blue to yellow, which people with any kind of colour
    blindness tell apart. Both follow the points' ranks, so that crowded parts of the plane use many colours.
    """
    ranks = points.argsort(dim=0, stable=True).argsort(dim=0).double() / max(1, len(points) - 1)
    light, hue = 0.25 + 0.6 * ranks[:, 0], 2 * ranks[:, 1] - 1
    blue, yellow = (-hue).clamp(min=0), hue.clamp(min=0)
    red = light + 0.18 * yellow - 0.22 * blue
    green = light + 0.10 * yellow - 0.08 * blue
    third = light - 0.38 * yellow + 0.28 * blue
    return (torch.stack([red, green, third], 1).clamp(0, 1) * 255).round().to(torch.uint8)
