"""Boxes of objects: x0, y0, x1, y1 as shares of the picture, from 0 to 1; checked, and cropped as images are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ROUNDING = 1e-3  # a box may lie this far outside, as a share of the picture; it is clipped
VISIBLE = 0.5  # a box stays if at least this share of its area is inside the crop


class Box(NamedTuple):
    """A box inside its picture, with an area."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        """As a share of the picture."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)


def box_inside(corners: Sequence[float], *, of: str = "a box") -> Box:
    """The box with these corners; raises ValueError if it is outside the picture or has no area.

    >>> box_inside([0.25, 0.5, 0.75, 1.0]).area
    0.25
    """
    try:
        x0, y0, x1, y1 = (float(corner) for corner in corners)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{of} is {corners!r}: give the four numbers x0, y0, x1, y1 from 0 to 1") from error
    if not all(math.isfinite(corner) for corner in (x0, y0, x1, y1)):
        raise ValueError(f"{of} is {list(corners)}: its corners must be finite numbers")
    if min(x0, y0) < -ROUNDING or max(x1, y1) > 1 + ROUNDING:
        raise ValueError(
            f"{of} is {list(corners)}, which lies outside the picture: corners are shares of its width and height, "
            "from 0 to 1"
        )
    box = Box(max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    if not (box.x1 > box.x0 and box.y1 > box.y0):
        raise ValueError(f"{of} is {list(corners)}, which has no area: give x0 < x1 and y0 < y1")
    return box


def box_in_centre_crop(box: Box, size: tuple[int, int]) -> Box | None:
    """The box as shares of the picture's central square, which `read_image` keeps; None if most of it is cut off.

    >>> box_in_centre_crop(Box(0.25, 0.0, 0.5, 1.0), (200, 100))
    Box(x0=0.0, y0=0.0, x1=0.5, y1=1.0)
    >>> box_in_centre_crop(Box(0.0, 0.0, 0.3, 1.0), (200, 100)) is None
    True
    """
    width, height = size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    x0, x1 = ((x * width - left) / side for x in (box.x0, box.x1))
    y0, y1 = ((y * height - top) / side for y in (box.y0, box.y1))
    kept = Box(max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    if kept.x1 <= kept.x0 or kept.y1 <= kept.y0 or kept.area < VISIBLE * (x1 - x0) * (y1 - y0):
        return None
    return kept
