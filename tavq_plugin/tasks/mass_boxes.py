"""From a map of mass over the grid to a box: the object is where most of the mass is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RULES = ("above the peak's share", "smallest with the share")
LARGEST_GRID = 16  # places per side; larger maps are averaged, since all boxes of a grid are tried


@dataclass(frozen=True)
class BoxRule:
    """How a box is made from a map. Raises ValueError for an unknown rule, or a share that is not in 0..1.

    "above the peak's share": around the connected places with at least `share` of the greatest mass, the one with the
    greatest mass among them. "smallest with the share": the smallest box that holds `share` of all mass.
    """

    rule: str
    share: float

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r}: give one of {', '.join(map(repr, RULES))}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")

    def boxes(self, mass: Tensor) -> Tensor:
        """The box of each map, x0, y0, x1, y1 as shares of the picture; k h w, 0 or more -> k 4.

        A map without mass gives the whole picture. Raises ValueError for a map with a negative or no finite number.
        """
        if not (mass.isfinite().all() and (mass >= 0).all()):
            raise ValueError("a map of mass has a negative or infinite number, or NaN: give the mass of a plan")
        if self.rule == RULES[0]:
            return _around_the_peak(mass, self.share)
        return _smallest_boxes(mass, self.share)


def peaks_of(mass: Tensor) -> Tensor:
    """The centre x, y of the place with the greatest mass of each map; k h w -> k 2."""
    h, w = mass.shape[1:]
    places = mass.flatten(1).argmax(1)
    return torch.stack([(places % w + 0.5) / w, (places // w + 0.5) / h], 1)


def _around_the_peak(mass: Tensor, share: float) -> Tensor:
    from scipy.ndimage import find_objects, label

    (h, w), boxes = mass.shape[1:], []
    for own in mass.numpy():
        parts, _ = label(own >= share * own.max())
        peak = parts[np.unravel_index(own.argmax(), own.shape)]
        rows, columns = find_objects(parts)[peak - 1]
        boxes.append([columns.start / w, rows.start / h, columns.stop / w, rows.stop / h])
    return torch.tensor(boxes).view(-1, 4)


def _smallest_boxes(mass: Tensor, share: float) -> Tensor:
    h, w = mass.shape[1:]
    size = (min(h, LARGEST_GRID), min(w, LARGEST_GRID))
    pooled = F.adaptive_avg_pool2d(mass[:, None].double(), size)[:, 0]
    pooled = pooled / pooled.sum((1, 2), keepdim=True).clamp(min=1e-30)
    sums = F.pad(pooled.cumsum(1).cumsum(2), (1, 0, 1, 0))  # sums[y, x]: the mass above y and left of x
    (top, bottom), (left, right) = (torch.combinations(torch.arange(side + 1)).T for side in size)
    height, width = bottom - top, right - left
    areas = (height[:, None] * width).flatten().double() / (size[0] * size[1])
    edges = torch.stack(
        [part.flatten() for part in torch.meshgrid(torch.arange(len(top)), torch.arange(len(left)), indexing="ij")]
    )
    chosen = []
    for own in sums:  # one map at a time, as a grid of 16 × 16 places has 18 496 boxes
        strips = own[bottom] - own[top]
        inside = (strips[:, right] - strips[:, left]).flatten()
        # of the smallest boxes that hold enough, the one that holds most
        score = torch.where(inside >= share - 1e-9, areas - 1e-6 * inside, torch.inf)
        chosen.append(int(score.argmin()) if score.isfinite().any() else int(areas.argmax()))
    rows, columns = edges[:, chosen]
    return torch.stack(
        [left[columns] / size[1], top[rows] / size[0], right[columns] / size[1], bottom[rows] / size[0]], 1
    ).float()
