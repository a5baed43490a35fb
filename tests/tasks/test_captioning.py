"""Captioning: measures against plain loops, captions that are missing or unknown, and a whole run."""

from dataclasses import replace

import pytest
import torch
from helpers.task_runs import patch_runs

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.captioning import Captioning, CaptionRows, majority_words, right_words, word_shares
from tavq_plugin.tasks.causal_model import CausalModel, likeliest
from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.task import ModelSettings, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.tasks.vocabulary import END, START, UNKNOWN, padded

pytest.importorskip("pycocoevalcap")
TINY = TaskSettings(ModelSettings(32, 2, 2), FitSettings(steps=3, batch_size=4, warmup=1))


def rows_of(*texts):
    return CaptionRows(torch.arange(len(texts)), padded([[START, *text, END] for text in texts]), 0)


@torch.no_grad()
def test_right_words_are_those_of_a_plain_loop():
    run, _ = patch_runs(n_train=2, n_eval=2)
    rows = rows_of([5, 6, 7], [8, UNKNOWN, 5, 6, 9])
    with drawn_from(0):
        model = CausalModel(CodeEmbedding(run.train, 32), 12, ModelSettings(32, 2, 2), longest=80).eval()
        model.language.lm_head.weight.mul_(20)
    right = right_words(model, run.held_out.tokens, rows)
    for i, text in enumerate(([5, 6, 7, END], [8, UNKNOWN, 5, 6, 9, END])):
        for t, word in enumerate(text):
            before = torch.tensor([[START, *text[:t]]])
            after = int(likeliest(model(run.held_out.tokens[i : i + 1], before))[0, -1])
            assert right[i, t] == (after == word != UNKNOWN)
    assert right.shape == (2, 6)


def test_shares_leave_out_what_is_not_counted():
    right = torch.tensor([[True, False, True], [True, True, True]])
    counted = torch.tensor([[True, True, False], [False, False, False]])
    shares = word_shares(right, counted)
    assert shares[0] == 0.5 and shares[1].isnan()


def test_the_majority_has_the_commonest_word_of_each_position():
    rows = rows_of([5, 6], [5, 7], [8, 7, 9])
    assert majority_words(rows, 6).tolist() == [5, 7, END, END, END, END]


def test_a_run_has_its_controls_counts_what_it_leaves_out_and_is_kept(tmp_path):
    run, data = patch_runs(n_train=6, n_eval=4)
    train = replace(data.train, captions=[(), *data.train.captions[1:]])
    held_out = replace(data.held_out, captions=[*data.held_out.captions[:3], ("A zebra.", "")])
    data = TaskData(data.name, train, held_out, data.classes, "one without text")
    said = []
    at = Workplace(tmp_path / "own", tmp_path / "shared", None, lambda name, done, total: said.append(name))
    result = Captioning().run(run, data, TINY, at)
    assert list(result.conditions) == ["codes", "shuffled codes", "learnt embedding", "pixels", "majority"]
    assert result.protocol["images_without_text"] == {"train": 1, "held_out": 0}
    assert result.protocol["unknown_words"]["held_out"] > 0 == result.protocol["unknown_words"]["train"]
    assert set(result.missing) == {"meteor", "spice"}
    for name, condition in result.conditions.items():
        assert {"token_accuracy", "content_accuracy", "bleu4", "rouge_l", "cider"} <= set(condition.values), name
        assert condition.per_image["token_accuracy"].shape == (4,)
        assert condition.per_image["content_accuracy"][3].isnan(), "no word of content"
    bits = {name for name, condition in result.conditions.items() if "bits_per_code" in condition.values}
    assert bits == {"codes", "majority"}
    assert len(result.samples) == 4 and result.samples[3].truth == "A zebra."
    said.clear()
    again = Captioning().run(run, data, TINY, at)
    assert not said, "finished models are loaded"
    assert again.conditions["codes"].values == result.conditions["codes"].values


def test_data_without_captions_are_unfit():
    _, data = patch_runs(n_train=2, n_eval=2)
    assert Captioning().unfit(data) == ""
    assert "held-out" in Captioning().unfit(data._replace(held_out=replace(data.held_out, captions=())))


def test_captions_say_what_the_codes_show(tmp_path):
    run, data = patch_runs(resolution=16, n_train=120, n_eval=40)
    parts = (replace(part, captions=[(f"A {scene.background} wall.",) for scene in part.scenes]) for part in data[1:3])
    data = TaskData(data.name, *parts, data.classes, "backgrounds")
    settings = TaskSettings(
        ModelSettings(32, 2, 4), FitSettings(steps=140, batch_size=16, learning_rate=5e-3, warmup=5)
    )
    result = Captioning().run(run, data, settings, Workplace(tmp_path / "own", tmp_path / "shared", None))
    accuracy = {name: condition.values["content_accuracy"] for name, condition in result.conditions.items()}
    assert accuracy["codes"] > 0.85 and accuracy["pixels"] > 0.7
    assert accuracy["shuffled codes"] < 0.6 and accuracy["majority"] < 0.6
