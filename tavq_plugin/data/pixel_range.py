"""Bring images of more than 8 bits to 0…255, by their mode and by what their file declares; refuse what is unclear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_BITS, _PHOTOMETRIC, _MAX_SAMPLE = 258, 262, 281  # tags of TIFF
_SCALED_BY_PILLOW = ("PNG", "PPM")  # in mode I, Pillow has scaled their values to 16 bits
DARKEST = 0.25  # share of the range that the brightest value must reach; 14 bits in a file of 16 do not reach it


@dataclass(frozen=True)
class Declared:
    """What a file says about its values, read before its pixels.

    `white` is the value of white, or None if the file does not say it. `inverted`: 0 is white. `deep`: it has 16 bits
    per channel, of which Pillow keeps the upper 8.
    """

    white: float | None
    inverted: bool
    deep: bool


def declared_range(opened: Image.Image) -> Declared:
    """The range that an image declares by its mode, its bits per sample or its largest value."""
    tags = getattr(opened, "tag_v2", {})
    white: float | None = None
    if _MAX_SAMPLE in tags and _first(tags[_MAX_SAMPLE]) > 0:
        white = float(_first(tags[_MAX_SAMPLE]))
    elif opened.mode.startswith("I;16"):
        white = 2.0 ** _first(tags.get(_BITS, 16)) - 1
    elif opened.mode == "I" and opened.format in _SCALED_BY_PILLOW:
        white = 65535.0
    elif opened.mode == "F":
        white = 1.0
    deep = any(";16" in str(tile[3]) for tile in getattr(opened, "tile", ()))
    return Declared(white, inverted=_first(tags.get(_PHOTOMETRIC, 1)) == 0, deep=deep and opened.mode[0] not in "IF")


def to_eight_bits(picture: Image.Image, declared: Declared) -> Image.Image:
    """The image with its values scaled to 0…255, if it has more than 8 bits; otherwise the image itself.

    Raises ValueError if the file does not declare which value is white, if a value is out of the declared range or not
    a number, or if all values are so far below white that the range cannot be the right one (12 bits in a file of 16).
    """
    if picture.mode == "La":
        raise ValueError("Pillow cannot convert its mode La: save it as LA, or without transparency")
    if declared.deep and "A" not in picture.mode and picture.mode in ("L", "RGB", "RGBX"):
        _refuse_dark(_brightest(picture), 255)
    elif declared.deep and picture.mode == "RGBA":
        _refuse_dark(_brightest(picture.convert("RGB")), 255)
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    lowest, highest = float(values.min()), float(values.max())
    mend = "scale the values to 0…255 and save it with 8 bits"
    if declared.white is None:
        raise ValueError(
            f"mode {picture.mode} with values {lowest:g} to {highest:g} does not say which is white; {mend}"
        )
    if not (lowest >= 0 and highest <= declared.white):  # also if one is NaN
        raise ValueError(f"values {lowest:g} to {highest:g} are not within 0 to {declared.white:g} (white); {mend}")
    _refuse_dark(highest, declared.white)
    scaled = values.astype(np.float32) * np.float32(255 / declared.white)
    if declared.inverted:
        np.subtract(255, scaled, out=scaled)
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def _refuse_dark(highest: float, white: float) -> None:
    """Raise ValueError if an image is not all black, but would be nearly so in the declared range."""
    if 0 < highest < DARKEST * white:
        raise ValueError(
            f"its brightest value is {highest:g}, and white would be {white:g}: it seems to have fewer bits than it "
            "declares; scale its values to the whole range, or to 0…255 and save it with 8 bits"
        )


def _brightest(picture: Image.Image) -> float:
    extrema = picture.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return float(max(high for _, high in pairs))  # type: ignore[misc]  # Pillow's type covers both forms


def _first(tag: float | tuple[float, ...]) -> float:
    return tag[0] if isinstance(tag, tuple) else tag
