"""Boxes of objects: x0, y0, x1, y1 as shares of the picture, from 0 to 1; checked, and converted from pixels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def box_of_pixels(xywh: Sequence[float], size: tuple[int, int], *, of: str = "a box") -> Box:
    """A box in pixels (left, top, width, height) of a picture of this width and height, as shares of it.

    Raises ValueError as `box_inside` does. One pixel outside is clipped, because published boxes are rounded.

    >>> box_of_pixels([10, 0, 20, 50], (100, 50))
    Box(x0=0.1, y0=0.0, x1=0.3, y1=1.0)
    """
    if len(size) != 2 or not all(size) or min(size) < 1:
        raise ValueError(f"{of}: the picture's size is {size}: give its width and height in pixels")
    try:
        left, top, width, height = (float(number) for number in xywh)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{of} is {xywh!r}: give left, top, width and height in pixels") from error
    right, bottom = left + width, top + height
    if min(left, top) < -1 or right > size[0] + 1 or bottom > size[1] + 1:
        raise ValueError(f"{of} is {list(xywh)} in pixels, which lies outside the picture of {size[0]} × {size[1]}")
    clipped = (max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))
    return box_inside([clipped[0] / size[0], clipped[1] / size[1], clipped[2] / size[0], clipped[3] / size[1]], of=of)


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


def grounding_boxes(annotated: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """The boxes of one picture as grounding needs them: {"phrase", "box", "unique"}, in the picture's central square.

    Objects that the crop cuts off are left out. A phrase is unique if it names one object of those that are left; an
    annotation with `"unique": False`, such as a crowd's, is never unique.

    Args:
        annotated: A record's boxes: {"phrase", and "box" as shares of the picture or "xywh" in its pixels}.
        size: Width and height of the picture in pixels, before it is cropped.

    Raises:
        ValueError: A box lies outside the picture or has no area, or an annotation has no phrase.

    >>> dog, cat = {"phrase": "A dog", "xywh": [0, 0, 5, 10]}, {"phrase": "cat", "xywh": [9, 0, 1, 1]}
    >>> [own["box"] for own in grounding_boxes([dog, cat], (10, 10))]
    [[0.0, 0.0, 0.5, 1.0], [0.9, 0.0, 1.0, 0.1]]
    """
    kept: dict[tuple[str, Box], dict[str, Any]] = {}
    for own in annotated:
        phrase = own.get("phrase")
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(f'a box has the phrase {phrase!r}: give the words that name its object as "phrase"')
        name = f"the box of {phrase!r}"
        whole = box_inside(own["box"], of=name) if "box" in own else box_of_pixels(own.get("xywh", ()), size, of=name)
        box = box_in_centre_crop(whole, size)
        if box is not None:
            kept[phrase, box] = {"phrase": phrase, "box": list(box), "unique": own.get("unique", True)}
    count = Counter(phrase.lower() for phrase, _ in kept)
    return [{**own, "unique": bool(own["unique"] and count[own["phrase"].lower()] == 1)} for own in kept.values()]
