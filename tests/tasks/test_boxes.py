"""Boxes: converted, cropped as the pictures are, and refused where they make no sense."""

import numpy as np
import pytest
from PIL import Image

from tavq_plugin.data.images import read_image
from tavq_plugin.tasks.boxes import Box, box_in_centre_crop, box_inside


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


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (100, 100)])
def test_a_box_follows_its_object_through_the_crop_of_read_image(tmp_path, size):
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    left, top, width, height = size[0] // 2 - 10, size[1] // 2 - 40, 30, 50
    pixels[top : top + height, left : left + width] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = Box(left / size[0], top / size[1], (left + width) / size[0], (top + height) / size[1])
    box = box_in_centre_crop(whole, size)
    rows, columns = (read_image(tmp_path / "a.png", 100)[0] > 127).nonzero(as_tuple=True)
    seen = [columns.min() / 100, rows.min() / 100, (columns.max() + 1) / 100, (rows.max() + 1) / 100]
    assert list(box) == pytest.approx([float(corner) for corner in seen], abs=0.011)
