"""The four tasks of the masked model from end to end on a tiny run, and what they refuse."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.task_runs import patch_runs
from helpers.tiny_encoders import save_tiny_bert

from tavq_plugin.tasks.completion import Completion
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.semantic_synthesis import LabelCondition, SemanticSynthesis, from_labels, label_model
from tavq_plugin.tasks.task import OF_CODES, ModelSettings, TaskSettings, Workplace
from tavq_plugin.tasks.task_results import checked_result
from tavq_plugin.tasks.text_condition import caption_store
from tavq_plugin.tasks.text_to_image import TextToImage, from_prompts, text_model
from tavq_plugin.tasks.unconditional import Unconditional
from tavq_plugin.text import TextEncoder

TINY = TaskSettings(ModelSettings(32, 2, 2), FitSettings(steps=6, batch_size=8, warmup=2), quick=True)


@pytest.fixture(scope="module")
def given():
    return patch_runs()


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    encoder = TextEncoder.from_pretrained(save_tiny_bert(folder / "bert"))
    return Workplace(folder / "own", folder / "shared", encoder)


@pytest.mark.parametrize(
    ("task", "controls"),
    [
        (Unconditional(), {"confidence order", "learnt embedding", "shuffled codes", "majority", "reconstructions",
                           "real images"}),
        (TextToImage(), {"shuffled texts", "learnt embedding", "majority", "reconstructions", "real images"}),
        (SemanticSynthesis(), {"shuffled label maps", "learnt embedding", "majority", "reconstructions",
                               "real images"}),
        (Completion(), {"shuffled codes", "learnt embedding", "majority", "reconstructions"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_a_task_measures_the_codes_and_its_controls(task, controls, given, at):
    run, data = given
    state = torch.get_rng_state()
    assert task.unfit(data) == ""
    result = checked_result(task.run(run, data, TINY, at), task.name)
    assert result.conditions.keys() == {OF_CODES, *controls}
    assert all(task.main_metric in condition.values for condition in result.conditions.values())
    for condition in result.conditions.values():
        for metric, each in condition.per_image.items():
            assert each.shape == (12,)
            assert each.mean().item() == pytest.approx(condition.values[metric], abs=1e-6)
    assert result.samples and all(image.dtype == torch.uint8 for row in result.samples for image in row.images)
    assert torch.equal(state, torch.get_rng_state())
    again = task.run(run, data, TINY, at)  # the models are loaded
    for name, condition in result.conditions.items():
        assert again.conditions[name].values == pytest.approx(dict(condition.values))


def test_what_is_exact_is_exact(given, at):
    run, data = given
    completed = Completion().run(run, data, TINY, at).conditions
    assert completed[OF_CODES].values["kept_exact"] == 1.0
    assert completed["reconstructions"].values["agreement"] == 1.0
    generated = TextToImage().run(run, data, TINY, at).conditions
    assert generated["majority"].values["attribute_agreement"] == pytest.approx(0.5)
    assert "fd_mobilenet" in Unconditional().run(run, data, TINY, at).missing


def test_data_that_cannot_serve_are_refused_by_name(given, at):
    run, data = given
    bare = data._replace(
        train=replace(data.train, captions=(), labels=None), held_out=replace(data.held_out, captions=(), labels=None)
    )
    assert "captions" in TextToImage().unfit(bare) and "label maps" in SemanticSynthesis().unfit(bare)
    with pytest.raises(ValueError, match="label maps"):
        SemanticSynthesis().run(run, bare, TINY, at)


def test_photographs_have_distances_and_a_reason_for_what_is_missing(given, at):
    run, data = given
    plain = data._replace(train=replace(data.train, scenes=()), held_out=replace(data.held_out, scenes=()))
    result = checked_result(TextToImage().run(run, plain, TINY, at), "text-to-image")
    assert "no scenes" in result.missing["attribute_agreement"]
    assert result.conditions[OF_CODES].values.keys() == {"fd_scenes_classifier", "fd_scenes_classifier_unguided"}


def test_a_prompt_makes_an_image_and_one_without_units_is_refused(given, at):
    run, data = given
    captions = [captions[0] for captions in (*data.train.captions, *data.held_out.captions)]
    store = caption_store(captions, at.encoder, at.shared / "texts", n_train=48)
    model = text_model(run, store, TINY, at, rows=torch.arange(48))
    made = from_prompts(run, model, ["A red circle."], at.encoder, store)
    assert made.shape == (1, 3, 16, 16) and made.dtype == torch.uint8
    with pytest.raises(ValueError, match="has no unit"):
        from_prompts(run, model, [""], at.encoder, store)


def test_label_maps_of_another_size_or_class_are_refused(given, at):
    run, data = given
    model = label_model(run, data, data.train.labels, TINY, at)
    assert from_labels(model, data.held_out.labels[:2]).shape == (2, 64)
    with pytest.raises(ValueError, match="knows 0 … 6"):
        from_labels(model, torch.full((1, 16, 16), 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="16 × 16"):
        from_labels(model, torch.zeros(1, 8, 8, dtype=torch.uint8))


def test_the_label_condition_reads_shares_of_classes_in_the_place_itself(given):
    run, _ = given
    condition = LabelCondition(run.train.layout, 16, 7, 8)
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    changed = labels.clone()
    changed[0, 2, 5] = 3  # row 1, column 2 of 8 × 8 places
    with torch.no_grad():
        differs = (condition(labels).at_places != condition(changed).at_places).any(2)[0]
    assert differs.nonzero()[:, 0].tolist() == [10] and math.isfinite(condition(changed).at_places.sum().item())
