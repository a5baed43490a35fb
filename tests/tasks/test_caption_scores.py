"""Scores of captions: known answers, and what is said of those that are not computed."""

import math

import pytest

from tavq_plugin.tasks.caption_scores import caption_scores

pytest.importorskip("pycocoevalcap")


def test_bleu_is_as_computed_by_hand_and_nothing_is_printed(capsys):
    scores = caption_scores(["A red circle is at the left."], [["A red circle is at the top."]])
    # 8 words with the full stop; of 8, 7, 6, 5 n-grams 7, 5, 4, 3 are in the true caption
    assert scores.values["bleu4"] == pytest.approx((7 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25, abs=1e-6)
    assert capsys.readouterr().out == ""


def test_rouge_is_as_computed_by_hand():
    scores = caption_scores(["a red circle"], [["a large red circle", "one circle"]])
    precision, recall, beta = 1.0, 3 / 4, 1.2
    assert scores.values["rouge_l"] == pytest.approx(
        (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    )


def test_a_perfect_caption_has_the_greatest_scores_and_an_empty_one_none():
    true = [["a red circle on grey ."], ["a blue star on pink ."], ["two rings in a row ."]]
    scores = caption_scores([true[0][0], "", true[2][0]], true)
    cider = scores.per_image["cider"]
    assert cider[0] == pytest.approx(10) and cider[1] == 0 and scores.values["cider"] == pytest.approx(20 / 3)
    assert scores.per_image["rouge_l"].tolist() == [1, 0, 1] and math.isfinite(scores.values["bleu4"])


def test_what_needs_java_is_named():
    missing = caption_scores(["a"], [["a"]]).missing
    assert set(missing) == {"meteor", "spice"} and all("Java" in why for why in missing.values())


def test_an_image_without_a_true_caption_is_refused():
    with pytest.raises(ValueError, match="1 of them without"):
        caption_scores(["a", "b"], [["a"], []])
