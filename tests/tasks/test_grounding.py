"""The grounding task: what it reports, what it refuses, and that its head learns to find objects."""

from dataclasses import replace

import pytest
import torch
from helpers.task_runs import patch_runs
from helpers.word_vectors import WordVectors

from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.grounding import Grounding
from tavq_plugin.tasks.grounding_scores import box_scores, centre_box, mean_box
from tavq_plugin.tasks.phrases import Phrases, unique_phrases, word_rows
from tavq_plugin.tasks.plan_grounding import PLAN, SHUFFLED
from tavq_plugin.tasks.task import OF_CODES, ModelSettings, TaskSettings, Workplace

TINY = TaskSettings(ModelSettings(width=16, layers=1, heads=2), FitSettings(steps=4, batch_size=8, warmup=1))
CONTROLS = ["shuffled codes", "learnt embedding", "pixels", "mean box", "centre box"]


def workplace(folder):
    return Workplace(folder / "own", folder / "shared", WordVectors())


def phrases_of(boxes, images):
    return Phrases(["thing"] * len(boxes), torch.tensor(images), torch.tensor(boxes), 3)


def test_scores_are_means_over_the_phrases_of_an_image_and_then_over_images():
    phrases = phrases_of([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]], [0, 0, 2])
    found = [
        torch.tensor([[0.0, 0.0, 0.5, 0.25], [0.5, 0.0, 1.0, 0.1]]),  # half of it
        torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]),  # the second box is right
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
    ]
    peaks = torch.tensor([[0.25, 0.25], [0.25, 0.25], [0.9, 0.9]])
    scores = box_scores(found, phrases, peaks=peaks)
    assert scores.values == {"acc@.5": 0.75, "mean_iou": 0.625, "acc@.5 of 2 boxes": 1.0, "pointing": 0.75}
    assert scores.per_image["mean_iou"][[0, 2]].tolist() == [0.25, 1.0]
    assert scores.per_image["mean_iou"][1].isnan()
    with pytest.raises(ValueError, match="boxes for 2 of 3 phrases"):
        box_scores(found[:2], phrases)


def test_the_boxes_that_anyone_can_guess():
    phrases = phrases_of([[0.0, 0.0, 0.5, 0.2], [0.0, 0.2, 0.3, 0.8]], [0, 1])
    assert mean_box(phrases).tolist() == [pytest.approx([0.0, 0.1, 0.4, 0.5])]
    assert centre_box(phrases).tolist() == [pytest.approx([0.3, 0.3, 0.7, 0.7])]


def test_phrases_are_those_of_one_object_and_words_keep_their_order():
    _, data = patch_runs(n_train=4, n_eval=4)
    boxes = [[{"phrase": "a b", "box": [0, 0, 1, 1], "unique": i != 1}] for i in range(4)]
    boxes[2].append({"phrase": "?!", "box": [0, 0, 1, 1], "unique": True})
    assert unique_phrases(replace(data.train, boxes=boxes)).images.tolist() == [0, 2, 3]
    boxes[3][0]["box"] = [0.5, 0.5, 1.5, 1.0]
    with pytest.raises(ValueError, match="the box of 'a b' of image 3 .* outside the picture"):
        unique_phrases(replace(data.train, boxes=boxes))
    assert word_rows(["b a c d"], ["a", "b", "c"], 2).tolist() == [[1, 0]]


def test_a_run_is_measured_beside_its_controls_and_says_what_it_lacks(tmp_path):
    run, data = patch_runs(n_train=24, n_eval=6)
    steps = []
    at = replace(workplace(tmp_path), progress=lambda name, done, total: steps.append(name))
    before = torch.get_rng_state()
    found = Grounding().run(run, data, TINY, at)
    assert torch.equal(before, torch.get_rng_state())
    assert list(found.conditions) == [OF_CODES, *CONTROLS]
    for scores in found.conditions.values():
        assert {"acc@.5", "mean_iou"} <= scores.values.keys()
        assert all(len(each) == 6 and 0 <= scores.values[name] <= 1 for name, each in scores.per_image.items())
    assert "no heads" in found.missing[PLAN] and "training phrases" in found.protocol
    assert found.samples and found.samples[0].images[0].dtype == torch.uint8 and found.samples[0].given
    again, trained = Grounding().run(run, data, TINY, at), len(steps)
    assert len(steps) == trained == 4 * TINY.fit.steps  # nothing is trained twice
    assert again.conditions[OF_CODES].values == found.conditions[OF_CODES].values


def test_an_aligned_run_also_grounds_by_its_plan(tmp_path):
    run, data = patch_runs(n_train=8, n_eval=4)
    torch.manual_seed(0)
    align = TextAlignment(3, 32, levels=("word",), projection="linear")
    found = Grounding().run(replace(run, align=align), data, TINY, workplace(tmp_path))
    assert found.missing == {} and {PLAN, SHUFFLED} <= found.conditions.keys()
    assert {"acc@.5", "mean_iou", "pointing"} == found.conditions[PLAN].values.keys()
    assert found.protocol[PLAN]["granularity"] == "word"


def test_data_without_boxes_are_unfit_and_refused(tmp_path):
    run, data = patch_runs(n_train=8, n_eval=4)
    bare = data._replace(held_out=replace(data.held_out, boxes=()))
    assert Grounding().unfit(data) == "" and "no held-out image" in Grounding().unfit(bare)
    with pytest.raises(ValueError, match="give data with boxes"):
        Grounding().run(run, bare, TINY, workplace(tmp_path))
    assert not (tmp_path / "own").exists()


@pytest.mark.slow
def test_the_head_learns_to_find_objects_by_their_codes(tmp_path):
    run, data = patch_runs(resolution=32, n_train=300, n_eval=60)
    fit = FitSettings(steps=120, batch_size=16, learning_rate=3e-3, warmup=20)
    settings = TaskSettings(ModelSettings(width=64, layers=2), fit)
    found = {name: each.values["acc@.5"] for name, each in Grounding().run(
        run, data, settings, workplace(tmp_path)).conditions.items()}  # fmt: skip
    assert found[OF_CODES] > 0.3 and found["pixels"] > 0.3
    assert found[OF_CODES] > 0.2 + max(found[name] for name in ("shuffled codes", "mean box", "centre box"))
