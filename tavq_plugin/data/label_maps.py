"""One map of classes per image from the masks of its parts, as CelebAMask-HQ publishes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tavq_plugin.data.images import open_image
from tavq_plugin.data.records import Record

BACKGROUND = "background"
# The order of CelebAMask-HQ's own program: a later part covers an earlier one.
CELEBA_PARTS = (
    "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "hair",
    "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
INSIDE = 127  # a mask's pixel above this value belongs to the part


def part_of(mask: Path) -> str:
    """The part that a mask shows, by its file name; ValueError if the name has none.

    >>> part_of(Path("CelebAMask-HQ-mask-anno/0/00002_l_eye.png"))
    'l_eye'
    """
    number, _, part = mask.stem.partition("_")
    if not number or not part:
        raise ValueError(f"{mask}: a mask's name is IMAGE_PART.png, such as 00002_hair.png; rename it")
    return part


def label_classes(records: Iterable[Record]) -> tuple[str, ...]:
    """The background and the parts of all masks: CelebAMask-HQ's own in their published order, others after them.

    If every part is one of CelebAMask-HQ's, all of its parts are classes, so that their numbers are always the same.
    Without masks there are no classes: ().
    """
    parts = {part_of(mask) for record in records for mask in record.masks}
    if not parts:
        return ()
    of_celeba = CELEBA_PARTS if parts & set(CELEBA_PARTS) else ()
    return (BACKGROUND, *of_celeba, *sorted(parts - set(of_celeba)))


def label_map(masks: Sequence[Path], classes: Sequence[str], resolution: int) -> Tensor:
    """The class of each pixel of one image, cropped and resized as `read_image` does; masks -> r r uint8.

    Where masks overlap, the class that comes later in `classes` is kept. A pixel in no mask is `classes[0]`.

    Args:
        masks: Files named IMAGE_PART.png, white where the part is, all of one size.
        classes: The background, then the parts in order, such as those of `label_classes`; at most 256.
        resolution: Side of the map.

    Raises:
        ValueError: A part is no class, masks have different sizes, or a file cannot be read.
    """
    if not 1 <= len(classes) <= 256:
        raise ValueError(f"got {len(classes)} classes: a map holds from 1 to 256")
    number = {name: i for i, name in enumerate(classes)}
    unknown = [mask.name for mask in masks if part_of(mask) not in number]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown[:3])}: no class of {', '.join(classes)}; "
            "rename the masks, or give their parts as classes"
        )
    labels, size = np.zeros((resolution, resolution), dtype=np.uint8), None
    for mask in sorted(masks, key=lambda mask: number[part_of(mask)]):
        picture = open_image(mask).convert("L")
        if size not in (None, picture.size):
            raise ValueError(f"{mask} is {picture.size} and another mask of its image {size} large: give one size")
        size = picture.size
        small = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.NEAREST)
        labels[np.asarray(small) > INSIDE] = number[part_of(mask)]
    return torch.from_numpy(labels)


def label_maps(records: Sequence[Record], classes: Sequence[str], resolution: int) -> Tensor:
    """The maps of several images; n records -> n r r uint8. Raises ValueError as `label_map`, with the record's id."""
    made = torch.zeros(len(records), resolution, resolution, dtype=torch.uint8)
    for own, record in zip(made, records, strict=True):
        try:
            own[:] = label_map(record.masks, classes, resolution)
        except ValueError as error:
            raise ValueError(f"label map of {record.id}: {error}") from error
    return made
