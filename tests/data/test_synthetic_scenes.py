"""Scenes depend on their seed alone, and their texts, masks and answers are true."""

import numpy as np
import pytest

from tavq_plugin.data.synthetic_scenes import COLOURS, render, scenes
from tavq_plugin.data.synthetic_text import NUMBERS, relation

MADE = [render(0, i, 64) for i in range(60)]


def test_a_scene_is_determined_by_seed_and_index():
    again = render(0, 5, 64)
    assert np.array_equal(again.image, MADE[5].image) and again.text == MADE[5].text and again.qa == MADE[5].qa
    assert not np.array_equal(render(1, 5, 64).image, again.image)
    together = scenes(3, seed=0, resolution=64, start=4)
    assert np.array_equal(together.images[1].permute(1, 2, 0).numpy(), again.image)


@pytest.mark.parametrize("resolution", [32, 100, 256])
def test_the_layout_is_the_same_at_every_resolution(resolution):
    other = render(0, 7, resolution)
    assert other.objects == MADE[7].objects and other.text == MADE[7].text
    assert other.image.shape == (resolution, resolution, 3) and other.mask.shape == (resolution, resolution)


def test_masks_lie_in_their_boxes_and_everything_stays_visible():
    for scene in MADE:
        for number, item in enumerate(scene.objects, 1):
            y, x = np.nonzero(scene.mask == number)
            x0, y0, x1, y1 = (value * 64 for value in item.box)
            assert len(x) > 0.12 * (x1 - x0) * (y1 - y0)
            assert x.min() >= x0 - 1 and x.max() <= x1 + 1 and y.min() >= y0 - 1 and y.max() <= y1 + 1
            assert min(item.box) >= -1e-9 and max(item.box) <= 1 + 1e-9


def test_plain_objects_have_their_colour():
    for scene in MADE:
        for number, item in enumerate(scene.objects, 1):
            if item.texture == "plain":
                seen = np.median(scene.image[scene.mask == number], axis=0)
                assert np.abs(seen - COLOURS[item.colour]).max() < 40, item


def test_the_text_is_long_and_names_everything():
    for scene in MADE:
        assert 4 <= scene.text.count(".") <= 7
        assert all(f"{item.colour} {item.shape}" in scene.text for item in scene.objects)
        assert scene.background in scene.text


def test_relations_in_the_text_are_true():
    for scene in MADE:
        by_name = {f"{item.colour} {item.shape}": item for item in scene.objects}
        for a_name, a in by_name.items():
            for b_name, b in by_name.items():
                for words, true in (
                    ("to the left of", a.x < b.x),
                    ("to the right of", a.x > b.x),
                    ("above", a.y < b.y),
                    ("below", a.y > b.y),
                ):
                    if f"The {a_name} lies {words} the {b_name}" in scene.text:
                        assert true and relation(a, b) == words


def test_answers_are_true():
    for scene in MADE:
        answers = {pair["question"]: pair["answer"] for pair in scene.qa}
        assert answers["How many shapes are there?"] == NUMBERS[len(scene.objects)]
        assert answers["What colour is the background?"] == scene.background
        for item in scene.objects:
            name = f"{item.colour} {item.shape}"
            assert answers[f"How large is the {name}?"] == item.size
            assert answers[f"Where is the {name}?"] == item.place
            alone = sum(other.shape == item.shape for other in scene.objects) == 1
            assert answers.get(f"What colour is the {item.shape}?") == (item.colour if alone else None)
