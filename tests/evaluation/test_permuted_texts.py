"""A law of every text metric: with texts dealt at random among the images it shows chance, and only then."""

import math

import pytest
import torch
import torch.nn.functional as F

from tavq_plugin.evaluation.metrics.average_precision import average_precision_per_image
from tavq_plugin.evaluation.metrics.permuted_texts import chance_of
from tavq_plugin.evaluation.metrics.purity import code_word_purity, mutual_information
from tavq_plugin.evaluation.metrics.relation import DEALS, similarity_error, similarity_errors
from tavq_plugin.evaluation.metrics.retrieval import (
    centred_cosines,
    own_ranks,
    recall_from_scores,
)
from tavq_plugin.evaluation.metrics.stability import code_word_stability
from tavq_plugin.evaluation.metrics.transport_retrieval import transport_scores
from tavq_plugin.evaluation.metrics.words import code_histograms, masked_words
from tavq_plugin.evaluation.probes.ridge import Ridge
from tavq_plugin.types import Units

N, WORDS, WIDTH = 120, 12, 16
SPREADS = 5  # standard deviations from chance that count as chance


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


PRESENT = uniform(N, WORDS) < 0.3
PRESENT[PRESENT.sum(1) < 2] |= F.one_hot(torch.tensor(0), WORDS).bool() | F.one_hot(torch.tensor(1), WORDS).bool()
VECTORS = F.normalize(random(WORDS, WIDTH, seed=1), dim=1)  # of the words
TEXTS = PRESENT.float() @ VECTORS
UNITS = Units(VECTORS.expand(N, -1, -1), PRESENT)


def codes_of_words(seed):
    """Which of 24 codes is at each of 30 places: two codes a word, words of the image's text and random ones."""
    weights = PRESENT + 0.05
    words = torch.multinomial(weights, 30, replacement=True, generator=torch.Generator().manual_seed(seed))
    return 2 * words + torch.randint(0, 2, words.shape, generator=torch.Generator().manual_seed(seed))


CODES = codes_of_words(2)  # n 30
HISTOGRAMS = code_histograms(CODES[:, None], 2 * WORDS)
POINTS = VECTORS.repeat_interleave(2, 0)[CODES] + 0.1 * random(N, 30, WIDTH, seed=3)  # n 30 d: a code of each place
IDENTITY = Ridge(
    torch.zeros(WIDTH, dtype=torch.float64), torch.ones(WIDTH, dtype=torch.float64),
    torch.eye(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, dtype=torch.float64),
)  # fmt: skip

COSINES = centred_cosines(POINTS.mean(1), TEXTS)
S = 30  # images of retrieval by transport
QUANTIZED = VECTORS.repeat_interleave(2, 0)[CODES[:S]].mT.unflatten(2, (5, 6))
TRANSPORT = transport_scores(
    QUANTIZED, CODES[:S].view(S, 5, 6), Units(UNITS.embeddings[:S], UNITS.mask[:S]), IDENTITY, solver="newton"
)
WORD_SCORES = HISTOGRAMS[:, ::2] + HISTOGRAMS[:, 1::2]
TRAIN, HELD_OUT = slice(0, 60), slice(60, N)


def masked(order):
    """Masked words of the held-out half, whose texts are dealt in the given order."""
    held_out = PRESENT[HELD_OUT][order]
    return masked_words(HISTOGRAMS[TRAIN], HISTOGRAMS[HELD_OUT], PRESENT[TRAIN], held_out, VECTORS)


def stability(words):
    runs = [(HISTOGRAMS, HISTOGRAMS), (SECOND, SECOND)]
    return code_word_stability(*runs, words)


SECOND = code_histograms(codes_of_words(4)[:, None], 2 * WORDS)  # another seed's codes

METRICS = {  # name → images, and the metric with the texts in a given order
    "R@1": (N, lambda order: 100 * recall_from_scores(COSINES[:, order])["r1"].mean().item()),
    "R@10": (N, lambda order: 100 * recall_from_scores(COSINES[:, order])["r10"].mean().item()),
    "R@10, text to image": (N, lambda order: 100 * recall_from_scores(COSINES.T[order])["r10"].mean().item()),
    "median rank": (N, lambda order: own_ranks(COSINES[:, order]).quantile(0.5).item()),
    "transport R@5": (S, lambda order: 100 * recall_from_scores(TRANSPORT[:, order])["r5"].mean().item()),
    "word mAP": (N, lambda order: average_precision_per_image(WORD_SCORES, PRESENT[order]).mean().item()),
    "masked word": (N - 60, lambda order: masked(order).with_codes.nanmean().item()),
    "purity": (N, lambda order: mutual_information(HISTOGRAMS, PRESENT[order])),
    "similarity": (
        N,
        lambda order: (
            similarity_error(POINTS, Units(UNITS.embeddings[order], UNITS.mask[order]), IDENTITY).nanmean().item()
        ),
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_permuted_texts_give_chance_and_own_texts_do_not(name):
    n, metric = METRICS[name]
    chance = chance_of(metric, n)
    for seed in range(1, 4):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1000 + seed))
        assert abs(metric(order) - chance.mean) <= SPREADS * chance.spread
    assert abs(metric(torch.arange(n)) - chance.mean) > SPREADS * chance.spread


def test_chance_of_retrieval_is_its_closed_form():
    at_ten = chance_of(METRICS["R@10"][1], N, permutations=200)
    assert at_ten.mean == pytest.approx(100 * 10 / N, abs=4 * at_ten.spread / 200**0.5)
    of_transport = chance_of(METRICS["transport R@5"][1], S, permutations=200)
    assert of_transport.mean == pytest.approx(100 * 5 / S, abs=4 * of_transport.spread / 200**0.5)
    rank = chance_of(METRICS["median rank"][1], N, permutations=200)
    assert rank.mean == pytest.approx((N + 1) / 2, abs=4 * rank.spread / 200**0.5)


def test_chance_of_average_precision_is_above_the_base_rate():
    base_rate = 100 * PRESENT.double().mean(0).mean().item()
    assert chance_of(METRICS["word mAP"][1], N).mean > base_rate


def test_purity_of_dealt_texts_has_no_excess():
    for seed in range(5):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1000 + seed))
        dealt = code_word_purity(HISTOGRAMS, PRESENT[order])
        assert abs(dealt.excess) <= SPREADS * dealt.null_spread
    own = code_word_purity(HISTOGRAMS, PRESENT)
    assert own.excess > 10 * own.null_spread and own.null > 0


def test_stability_of_dealt_texts_has_no_excess_although_the_codes_agree():
    own = stability(PRESENT)
    assert own.excess > SPREADS * own.dealt_spread
    for seed in range(5):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1000 + seed))
        dealt = stability(PRESENT[order])
        assert abs(dealt.excess) <= SPREADS * dealt.dealt_spread
        assert dealt.dealt > 0.3  # codes of the same images agree with any texts


def test_codes_of_other_images_are_the_chance_of_masked_words():
    own = masked(torch.arange(N - 60))
    assert own.with_codes.nanmean() > own.chance.mean + 2 * SPREADS * own.chance.spread
    dealt = masked(torch.randperm(N - 60, generator=torch.Generator().manual_seed(7)))
    assert abs(dealt.with_codes.nanmean().item() - dealt.chance.mean) <= SPREADS * dealt.chance.spread


def test_the_control_of_similarity_is_what_permuted_texts_give():
    errors = similarity_errors(POINTS, UNITS, IDENTITY)
    again = chance_of(METRICS["similarity"][1], N, permutations=DEALS)
    assert errors.chance == pytest.approx(again)
    assert errors.own.nanmean().item() < errors.chance.mean


def test_chance_is_the_same_for_a_seed_and_leaves_the_random_state():
    before = torch.random.get_rng_state()
    metric = METRICS["R@10"][1]
    assert chance_of(metric, N) == chance_of(metric, N) != chance_of(metric, N, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_chance_refuses_too_few_texts_or_permutations_and_nan():
    with pytest.raises(ValueError, match="at least two texts"):
        chance_of(float, 1)
    with pytest.raises(ValueError, match="at least 2"):
        chance_of(float, 5, permutations=1)
    with pytest.raises(ValueError, match="permuted texts came out as"):
        chance_of(lambda order: math.nan, 5)
