"""Scores of answers: against plain loops and known values."""

import pytest
import torch

from tavq_plugin.tasks.answer_scores import answer_scores, common_kinds, kind_of, wups
from tavq_plugin.tasks.task_data import drawn_data


def test_shares_are_those_of_a_plain_loop():
    draw = torch.Generator().manual_seed(0)
    right, image = torch.rand(60, generator=draw) < 0.4, torch.randint(9, (60,), generator=draw)
    kinds = [("size", "place", "count")[i] for i in torch.randint(3, (60,), generator=draw)]
    image[image == 4] = 5  # image 4 has no question
    scores = answer_scores(right, kinds, image, 9)
    of_image = [[bool(r) for r, i in zip(right, image, strict=True) if i == k] for k in range(9)]
    shares = [sum(hits) / len(hits) for hits in of_image if hits]
    assert scores.values["exact_match"] == pytest.approx(sum(shares) / 8)
    of_kind = {
        name: [bool(r) for r, kind in zip(right, kinds, strict=True) if kind == name] for name in sorted(set(kinds))
    }
    for name, hits in of_kind.items():
        assert scores.values[f"accuracy_{name}"] == pytest.approx(sum(hits) / len(hits))
    mean = sum(sum(hits) / len(hits) for hits in of_kind.values()) / 3
    assert scores.values["answer_accuracy"] == pytest.approx(mean)
    for name in ("exact_match", "answer_accuracy"):
        values = scores.per_image[name]
        assert values[4].isnan() and values.nanmean().item() == pytest.approx(scores.values[name])


def test_every_question_on_drawn_scenes_has_a_kind():
    questions = [item for scene in drawn_data(resolution=16, n_train=8, n_eval=1).train.questions for item in scene]
    kinds = {kind_of(item) for item in questions}
    assert kinds == {"background", "count", "colour", "size", "texture", "place", "relation"}
    assert kind_of({"question": "What is it?", "kind": "object"}) == "object"


def test_rare_kinds_are_counted_together():
    assert common_kinds(["a"] * 3 + ["b", "c"], fewest=3) == ["a"] * 3 + ["other"] * 2


def test_wups_is_as_computed_by_hand():
    table = {("cup", "mug"): 0.95, ("cup", "dog"): 0.5}

    def likeness(one, other):
        return 1.0 if one == other else table.get((one, other), table.get((other, one), 0.0))

    assert wups("Cup", "cup", likeness) == 1
    assert wups("mug", "cup", likeness) == pytest.approx(0.95)
    assert wups("dog", "cup", likeness) == pytest.approx(0.05)
    assert wups("cup", "cup, dog", likeness) == pytest.approx(0.05)  # the dog is not covered
    assert wups("", "cup", likeness) == 0
