"""Different photographs of one camera stay; copies of a photograph are found, however they were made."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tavq_plugin.data.leakage import burst_members, find_leakage

SIDE = 64


def photograph(number, background):
    """A vignette, for all the same, with objects of its own; the backdrop may have a texture, for all the same too."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light = 230 - 125 * (x * x + y * y) + 30 * x - 10 * y
    if background == "texture":
        light = light + np.random.default_rng(0).normal(0, 10, (SIDE, SIDE))
    picture = Image.fromarray(light.clip(0, 255).astype(np.uint8)).convert("RGB")
    draw, random = ImageDraw.Draw(picture), np.random.default_rng(number)
    for _ in range(3):
        (left, top), side = random.integers(8, 48, 2), random.integers(5, 14)
        draw.rectangle((left, top, left + side, top + side), fill=tuple(map(int, random.integers(0, 255, 3))))
    return picture


def tensor(pictures):
    return torch.stack([torch.from_numpy(np.array(each.resize((SIDE, SIDE)))).movedim(2, 0) for each in pictures])


def found(train, held_out):
    """Positions of held-out images that are called copies, or of training images of the same burst."""
    texts = [[""] * len(side) for side in (train, held_out)]
    files = [[f"{name} {i}".encode() for i in range(len(side))] for name, side in (("a", train), ("b", held_out))]
    copies = find_leakage(train, held_out, *files).all
    return copies | burst_members(held_out, texts[1], train, texts[0])


@pytest.mark.parametrize("background", ["even", "texture"])
def test_six_different_photographs_of_one_camera_stay(background):
    images = tensor([photograph(i, background) for i in range(6)])
    for i in range(6):
        assert found(images[[j for j in range(6) if j != i]], images[i : i + 1]) == set()


def test_different_pictures_with_equal_hashes_stay():
    """The hash sees where brightness rises, which a strong slope decides alone; the marks on it differ."""
    slope = torch.linspace(40, 200, SIDE).expand(1, 3, SIDE, SIDE).clone()
    one, other = slope.clone(), slope.clone()
    one[:, :, 4:12, 10:50] += 18
    other[:, :, 40:60, 10:50] -= 18
    assert found(one.to(torch.uint8), other.to(torch.uint8)) == set()
    assert found(one.to(torch.uint8), one.add(1).to(torch.uint8)) == {0}


def encoded(picture, quality):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


COPIES = {
    "jpeg": lambda picture: encoded(picture, 30),
    "smaller": lambda picture: picture.resize((40, 40)),
    "larger": lambda picture: picture.resize((150, 150)),
    "paler": lambda picture: picture.point(lambda value: int(0.7 * value + 50)),
    "shifted": lambda picture: picture.crop((2, 0, SIDE, SIDE - 2)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(name):
    pictures = [photograph(i, "even") for i in range(6)]
    assert found(tensor(pictures), tensor([COPIES[name](each) for each in pictures])) == set(range(6))
