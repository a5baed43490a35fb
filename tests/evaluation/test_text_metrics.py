"""Text metrics against known answers: for codes that are made from the words, and for noise."""

import math

import pytest
import torch
import torch.nn.functional as F

from tavq_plugin.evaluation.metrics.average_precision import average_precision_per_image
from tavq_plugin.evaluation.metrics.purity import code_word_purity, mutual_information
from tavq_plugin.evaluation.metrics.relation import similarity_error
from tavq_plugin.evaluation.metrics.retrieval import (
    recall_from_scores,
    recall_per_query,
)
from tavq_plugin.evaluation.metrics.stability import code_word_stability, word_image_stability
from tavq_plugin.evaluation.metrics.transport_retrieval import transport_scores
from tavq_plugin.evaluation.metrics.words import code_histograms, masked_words, word_presence
from tavq_plugin.evaluation.probes.ridge import Ridge, fit_ridge
from tavq_plugin.text.ragged import RaggedRows
from tavq_plugin.text.store import TextStore
from tavq_plugin.types import Units


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def identity_probe(width):
    """A probe that changes nothing."""
    one = torch.ones(width, dtype=torch.float64)
    return Ridge(0 * one, one, torch.eye(width, dtype=torch.float64), 0 * one)


def test_ridge_with_more_features_than_rows_gives_the_same_predictions():
    x, y = random(20, 8).double(), random(20, 3, seed=1).double()
    wide = torch.cat([x, x, x], 1) / 3**0.5  # three copies of a feature at one penalty are one feature
    primal = fit_ridge(x, y, penalty=6.0).predict(x)
    torch.testing.assert_close(fit_ridge(wide, y, penalty=18.0).predict(wide), primal)


def test_recall_per_query_follows_the_rank_of_its_own_key():
    score = torch.tensor([[3.0, 2.0, 1.0], [5.0, 4.0, 3.0], [9.0, 9.0, 9.0]])
    assert recall_from_scores(score, at=(1, 2))["r1"].tolist() == pytest.approx([1, 0, 1 / 3])
    assert recall_from_scores(score, at=(1, 2))["r2"].tolist() == pytest.approx([1, 1, 2 / 3])
    keys = random(6, 4)
    assert recall_per_query(keys, keys, at=(1,))["r1"].tolist() == [1.0] * 6


def test_a_nan_score_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        recall_from_scores(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))


def test_the_images_parts_of_average_precision_average_to_it():
    from torchmetrics.functional.classification import binary_average_precision

    present = random(40, 7) > 0.8
    present[:, 3] = False
    scores = random(40, 7, seed=1)
    ranks = scores.double().argsort(0).argsort(0).double() / len(scores)  # torchmetrics takes scores within [0, 1]
    words = [word for word in range(7) if word != 3]
    expected = [binary_average_precision(ranks[:, word], present[:, word].long()).item() for word in words]
    parts = average_precision_per_image(scores, present)
    assert parts.mean().item() == pytest.approx(100 * sum(expected) / len(expected))
    assert parts[~present.any(1)].abs().sum() == 0


def test_word_presence_of_a_hand_made_store():
    store = TextStore(
        ids=("a", "b", "c"), table=torch.zeros(3, 2), vocabulary=("dog", "ball", "runs"),
        lists={"word": RaggedRows.from_lists([[0, 2, 0], [], [1, 2]])}, means={"word": torch.zeros(2)},
    )  # fmt: skip
    table = word_presence(store, [0, 1, 2], ["runs", "dog"])
    assert table.tolist() == [[True, True], [False, False], [True, False]]


def test_masked_words_are_found_if_codes_contain_them():
    words = torch.rand(400, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    codes, vectors = words.float(), random(8, 16)
    guessed = masked_words(codes[:300], codes[300:], words[:300], words[300:], vectors)
    assert guessed.with_codes.nanmean() > 0.95
    assert guessed.text_alone.nanmean() < 0.4
    assert torch.equal(guessed.with_codes.isnan(), ~words[300:].any(1))


def test_an_image_is_nearest_to_the_text_that_equals_its_codes():
    text = F.normalize(random(5, 6, 4), dim=2)
    mask = torch.ones(5, 6, dtype=torch.bool)
    codes = text.mT.reshape(5, 4, 2, 3)
    indices = torch.arange(30).view(5, 2, 3)
    score = transport_scores(codes, indices, Units(text, mask), identity_probe(4))
    assert torch.equal(score.argmax(1), torch.arange(5)) and torch.equal(score.argmax(0), torch.arange(5))
    assert score.mean(0).abs().max() < 1e-6 and score.mean(1).abs().max() < 1e-6


def test_mutual_information_of_codes_and_words_is_known():
    codes = torch.eye(4).repeat(5, 1)
    assert mutual_information(codes, codes.bool()) == pytest.approx(2.0)
    assert mutual_information(torch.ones(20, 1), codes.bool()) == pytest.approx(0.0)
    half = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]).repeat(5, 1)  # carries one of two bits
    assert mutual_information(half, codes.bool()) == pytest.approx(1.0)


def test_purity_of_noise_is_at_its_null_and_purity_of_words_above_it():
    words = random(200, 10) > 0.7
    noise = code_word_purity(code_histograms(torch.randint(0, 16, (200, 2, 4)), 16), words)
    assert abs(noise.z) < 4 and noise.null > 0
    named = code_word_purity(words.float() / words.sum(1, keepdim=True).clamp(min=1), words)
    assert named.z > 20 and named.excess > 100


def test_renumbered_codes_are_stable_and_other_codes_are_not():
    words = random(120, 12) > 0.6
    train, held_out = random(150, 20).abs(), random(120, 20, seed=1).abs()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    same = code_word_stability((train, held_out), (train[:, order], held_out[:, order]), words)
    assert same.matched == pytest.approx(1.0) == same.dealt  # one run twice: its codes occur in the same images
    assert same.excess == pytest.approx(0, abs=1e-9)
    other = code_word_stability(
        (train, held_out), (random(150, 20, seed=3).abs(), random(120, 20, seed=4).abs()), words
    )
    assert abs(other.matched) < 0.35


def test_word_image_stability_ignores_scale_and_offset():
    scores = random(50, 6)
    assert word_image_stability(scores, 3 * scores + 1) == pytest.approx(1.0)
    assert abs(word_image_stability(scores, random(50, 6, seed=1))) < 0.3


def test_codes_that_equal_their_words_have_no_similarity_error():
    text = F.normalize(random(3, 5, 8), dim=2)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [True] + [False] * 4])
    error = similarity_error(text, Units(text, mask), identity_probe(8))
    assert error[:2].tolist() == pytest.approx([0, 0], abs=1e-9) and error[2].isnan()
    one = similarity_error(
        text[:, :1], Units(text, mask), identity_probe(8)
    )  # every word picks the same code: cosine 1
    pair = (1 - text[1, 0] @ text[1, 1]) ** 2
    assert one[1].item() == pytest.approx(pair.item(), abs=1e-6)
