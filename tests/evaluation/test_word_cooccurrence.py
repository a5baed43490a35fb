"""Co-occurrence vectors against plain loops in NumPy, and the unseen text targets made of them."""

import math

import numpy as np
import pytest
import torch
from helpers.toy_corpus import Letters, corpus

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.evaluation.word_cooccurrence import cooccurrence_vectors, positive_mutual_information
from tavq_plugin.text.store import TextStore


def presence(n=60, v=9, seed=0):
    """Texts of random words, of which some go together and the last is in none; n v bool."""
    draw = torch.Generator().manual_seed(seed)
    topic = torch.randint(3, (n, 1), generator=draw)
    likely = torch.where(torch.arange(v) % 3 == topic, 0.7, 0.2)
    present = torch.rand(n, v, generator=draw) < likely
    present[:, -1] = False
    return present


def information_of(present):
    """Positive mutual information, word pair by word pair."""
    n, v = present.shape
    information = np.zeros((v, v))
    for i in range(v):
        for j in range(v):
            both = sum(bool(row[i] and row[j]) for row in present)
            alone = [sum(bool(row[k]) for row in present) for k in (i, j)]
            if both:
                information[i, j] = max(0.0, math.log(both * n / (alone[0] * alone[1])))
    return information


def test_mutual_information_equals_a_plain_loop():
    present = presence()
    expected = torch.from_numpy(information_of(present.numpy()))
    torch.testing.assert_close(positive_mutual_information(present), expected)
    assert (expected > 0).any() and not expected[-1].any()


@pytest.mark.parametrize("width", [1, 4, 100])
def test_vectors_equal_a_truncated_singular_value_decomposition(width):
    present = presence()
    u, s, _ = np.linalg.svd(information_of(present.numpy()))
    kept = min(width, 8)
    expected = u[:, :kept] * np.sqrt(s[:kept])
    vectors = cooccurrence_vectors(present, width=width)
    assert vectors.shape == (9, kept)
    for ours, theirs in zip(vectors.T.numpy(), expected.T, strict=True):
        sign = np.sign(ours @ theirs) or 1.0
        np.testing.assert_allclose(ours, sign * theirs, atol=1e-7)


def test_vectors_are_the_same_each_time_and_of_no_random_sign():
    vectors = cooccurrence_vectors(presence(), width=4)
    assert torch.equal(vectors, cooccurrence_vectors(presence(), width=4))
    assert (vectors.amax(0) == vectors.abs().amax(0)).all()


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match="at least two words"):
        cooccurrence_vectors(torch.ones(5, 1, dtype=torch.bool))


def topics(n=40, n_train=30):
    """Texts of two topics, and one without a known word in each split."""
    sides = (("dog", "grass", "ball"), ("boat", "sea", "sail"))
    texts = [f"a {sides[i % 2][i % 3]} near a {sides[i % 2][(i + 1) % 3]}" for i in range(n)]
    texts[3] = texts[-1] = ""
    texts[-2] = "a quetzal"
    images = torch.zeros(n, 3, 8, 8, dtype=torch.uint8)
    return Corpus("topics", images, texts, TextStore.build(texts, Letters(), centre_on=range(n_train)), n_train)


def test_unseen_targets_are_mean_vectors_of_known_words():
    targets = TextTargets(topics(), EvaluationSettings(min_text=8))
    assert targets.train_unseen.shape[0] == 30 and targets.held_out_unseen.shape[0] == 10
    assert targets.train_unseen_has_text.tolist() == [i != 3 for i in range(30)]
    assert targets.held_out_unseen_has_text.tolist() == [True] * 8 + [False] * 2  # an unknown word, and no text
    assert not targets.train_unseen[3].any() and not targets.held_out_unseen[-2:].any()
    torch.testing.assert_close(
        targets.train_unseen.sum(0), torch.zeros_like(targets.train_unseen[0]), atol=1e-9, rtol=0
    )
    similar = torch.cosine_similarity(targets.held_out_unseen[:8, None], targets.train_unseen[None, :3], dim=-1)
    own_topic = torch.tensor([[i % 2 == j % 2 for j in range(3)] for i in range(8)])
    assert similar[own_topic].min() > similar[~own_topic].max()


def test_unseen_targets_do_not_read_held_out_texts():
    ours, other = topics(), topics()
    texts = [*other.texts[:30], *["dog sea"] * 10]
    other = Corpus("other", other.images, texts, TextStore.build(texts, Letters(), centre_on=range(30)), 30)
    first, second = (TextTargets(each, EvaluationSettings(min_text=2)) for each in (ours, other))
    assert torch.equal(first.train_unseen, second.train_unseen)


def test_texts_whose_words_do_not_go_together_have_no_unseen_targets():
    toy = corpus(24, 12)  # five words that all texts have
    targets = TextTargets(toy, EvaluationSettings())
    assert targets.train_unseen.shape == targets.held_out_unseen.shape == (12, 0)
    assert not targets.train_unseen_has_text.any() and not targets.held_out_unseen_has_text.any()


@pytest.mark.parametrize(("n", "n_train", "came"), [(30, 9, "9 training and 21"), (21, 14, "14 training and 7")])
def test_too_few_images_with_text_are_refused(n, n_train, came):
    with pytest.raises(ValueError, match=f"{came} held-out images have text.*at least 10 of each.*larger --eval"):
        TextTargets(corpus(n, n_train), EvaluationSettings())
    assert len(TextTargets(corpus(n, n_train), EvaluationSettings(min_text=7)).held_out_words) == n - n_train


def test_boxes_are_kept_by_split():
    toy = corpus(24, 12)
    assert TextTargets(toy, EvaluationSettings()).train_boxes == []
    boxes = [[{"phrase": str(i), "box": [0.0, 0.0, 1.0, 1.0]}] for i in range(24)]
    object.__setattr__(toy, "boxes", boxes)
    targets = TextTargets(toy, EvaluationSettings(probe_rows=5, min_text=2))
    assert targets.train_boxes == boxes[:5] and targets.held_out_boxes == boxes[12:]
