"""Attributes of drawn scenes, what is asked of an image, and the classifier that answers."""

import pytest
import torch

from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.tasks.attribute_classifier import (
    ATTRIBUTES,
    AttributeClassifier,
    agreement,
    asked_attributes,
    attribute_classifier,
    attributes_of,
)
from tavq_plugin.tasks.task import Workplace
from tavq_plugin.tasks.task_data import drawn_data

DRAWN = scenes(12, seed=1, resolution=16).scenes


def test_the_attributes_are_those_that_the_text_names():
    for scene, row in zip(DRAWN, attributes_of(DRAWN), strict=True):
        for name, present in zip(ATTRIBUTES, row.tolist(), strict=True):
            colour, shape = name.split()
            named = f"{colour} background" in scene.text or f"background is {colour}" in scene.text
            assert present == (named if shape == "background" else name in scene.text)


def test_half_of_what_is_asked_is_absent_and_nearly_right():
    true, asked = attributes_of(DRAWN), asked_attributes(DRAWN)
    assert torch.equal(asked & true, true)
    assert torch.equal((asked & ~true).sum(1), true.sum(1))
    for row, others in zip(true, asked & ~true, strict=True):
        words = {word for place in row.nonzero()[:, 0].tolist() for word in ATTRIBUTES[place].split()}
        assert all(set(ATTRIBUTES[place].split()) & words for place in others.nonzero()[:, 0].tolist())
    assert torch.equal(asked, asked_attributes(DRAWN))
    assert agreement(true, true, asked).eq(1).all() and agreement(~true, true, asked).eq(0).all()
    assert agreement(torch.zeros_like(true), true, asked).eq(0.5).all()


def test_a_pair_is_present_only_where_colour_and_shape_meet():
    """A scene of a red circle and a blue square has no red square."""
    model = AttributeClassifier(16).eval()
    colours, shapes = torch.full((1, 9, 16, 16), -9.0), torch.full((1, 7, 16, 16), -9.0)
    colours[:, 0], shapes[:, 0] = 9.0, 9.0
    for columns, colour, shape in ((slice(0, 4), 1, 1), (slice(8, 12), 3, 2)):  # red circle, blue square
        colours[:, 0, :, columns], shapes[:, 0, :, columns] = -9.0, -9.0
        colours[:, colour, :, columns], shapes[:, shape, :, columns] = 9.0, 9.0
    pairs = model.pairs(colours, shapes)[0] > 0
    assert [ATTRIBUTES[place] for place in pairs.nonzero()[:, 0].tolist()] == ["red circle", "blue square"]


def test_a_trained_classifier_is_kept_and_gives_the_same_answers(tmp_path):
    data, steps = drawn_data(resolution=16, n_train=24, n_eval=6), []
    at = Workplace(tmp_path / "own", tmp_path / "shared", None, lambda *step: steps.append(step))
    first, accuracy = attribute_classifier(data, at, quick=True)
    trained = len(steps)
    again, same = attribute_classifier(data, at, quick=True)
    assert trained and len(steps) == trained and accuracy == same and 0 <= accuracy <= 1
    judged = first.judge(data.held_out.images)
    assert judged.present.shape == (6, len(ATTRIBUTES)) and judged.features.isfinite().all()
    assert torch.equal(judged.present, again.judge(data.held_out.images).present)
    assert not first.training and first.judge(data.train.images[:1]).present[:, 48:].sum() == 1


@pytest.mark.slow
def test_a_quick_classifier_has_begun_to_read_scenes(tmp_path):
    """`tavq task` prints the agreement of the one that has all of its 500 steps, which takes minutes to train."""
    data = drawn_data(resolution=32, n_train=300, n_eval=100)
    _, accuracy = attribute_classifier(data, Workplace(tmp_path, tmp_path, None), quick=True)
    assert accuracy > 0.55  # chance is .5
