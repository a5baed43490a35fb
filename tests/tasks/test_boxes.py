"""Boxes: converted, cropped as the pictures are, and refused where they make no sense."""

import numpy as np
import pytest
from PIL import Image

from tavq_plugin.data.images import read_image
from tavq_plugin.tasks.boxes import Box, box_in_centre_crop, box_inside, box_of_pixels, grounding_boxes


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        ([0.2, 0.2, 1.2, 0.4], "outside the picture"),
        ([-0.1, 0.2, 0.5, 0.4], "outside the picture"),
        ([0.5, 0.2, 0.5, 0.4], "no area"),
        ([0.5, 0.2, 0.4, 0.4], "no area"),
        ([0.5, 0.2, float("nan"), 0.4], "finite"),
        ([0.5, 0.2, 0.4], "four numbers"),
        (None, "four numbers"),
    ],
)
def test_a_box_outside_or_without_area_is_refused_by_name(corners, words):
    with pytest.raises(ValueError, match=f"the box of 'dog' is .*{words}"):
        box_inside(corners, of="the box of 'dog'")


def test_pixels_outside_the_picture_are_refused_and_rounding_is_clipped():
    assert box_of_pixels([90.0, 0, 10.4, 50], (100, 50)) == Box(0.9, 0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="outside the picture of 100 × 50"):
        box_of_pixels([90, 0, 20, 50], (100, 50))
    with pytest.raises(ValueError, match="size is"):
        box_of_pixels([1, 1, 2, 2], (None, None))
    with pytest.raises(ValueError, match="no area"):
        box_of_pixels([1, 1, 0, 2], (100, 50))


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (100, 100)])
def test_a_box_follows_its_object_through_the_crop_of_read_image(tmp_path, size):
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    left, top, width, height = size[0] // 2 - 10, size[1] // 2 - 40, 30, 50
    pixels[top : top + height, left : left + width] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    box = box_in_centre_crop(box_of_pixels([left, top, width, height], size), size)
    rows, columns = (read_image(tmp_path / "a.png", 100)[0] > 127).nonzero(as_tuple=True)
    seen = [columns.min() / 100, rows.min() / 100, (columns.max() + 1) / 100, (rows.max() + 1) / 100]
    assert list(box) == pytest.approx([float(corner) for corner in seen], abs=0.011)


def test_a_phrase_is_unique_if_it_names_one_object_that_is_left_after_the_crop():
    boxes = [
        {"phrase": "dog", "xywh": [0, 0, 20, 50]},  # cut off
        {"phrase": "Dog", "xywh": [60, 0, 40, 50]},
        {"phrase": "cat", "box": [0.3, 0.1, 0.4, 0.2]},
        {"phrase": "cat", "box": [0.5, 0.1, 0.6, 0.2]},
        {"phrase": "people", "box": [0.3, 0.0, 0.7, 1.0], "unique": False},
        {"phrase": "people", "box": [0.3, 0.0, 0.7, 1.0], "unique": False},  # said twice
    ]
    made = grounding_boxes(boxes, (200, 50 * 2))
    assert [(box["phrase"], box["unique"]) for box in made] == [
        ("Dog", True), ("cat", False), ("cat", False), ("people", False),
    ]  # fmt: skip
    with pytest.raises(ValueError, match='as "phrase"'):
        grounding_boxes([{"phrase": " ", "box": [0, 0, 1, 1]}], (10, 10))
