"""The attentive probe learns where a code is, is the same for a seed, and leaves the caller's random state alone."""

import pytest
import torch

from tavq_plugin.evaluation.metrics.average_precision import average_precision_per_image
from tavq_plugin.evaluation.probes.attentive_probe import fit_attentive
from tavq_plugin.evaluation.probes.ridge import PenaltyAtEdge, choose_ridges


def sided_codes(n, *, seed=0):
    """Grids of codes with code A in one half and code B in the other; words: A is left, A is right; n 4 4 4, n 3, n 2.

    Both halves have as many places, so that the mean code is the same on both sides but for noise.
    """
    draw = torch.Generator().manual_seed(seed)
    book = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
    left = torch.randint(2, (n, 1, 1), generator=draw)
    column = torch.arange(4)[None, None, :] // 2
    places = book[(left + column) % 2].expand(n, 4, 4, 4).permute(0, 3, 1, 2)
    words = torch.stack([left == 0, left == 1], 1)[:, :, 0, 0]
    texts = torch.where(words[:, :1], torch.tensor([5.0, 7.0, 0.02]), torch.tensor([5.0, 8.0, 0.01]))
    return places + 2 * torch.randn(n, 4, 4, 4, generator=draw), texts, words


def precision(scores, words):
    return average_precision_per_image(scores, words).mean().item()


def test_it_learns_a_word_that_depends_on_position_as_the_grid_ridge_does_and_pooled_codes_do_not():
    places, texts, words = sided_codes(500)
    held_out, held_out_texts, held_out_words = sided_codes(300, seed=1)
    probe = fit_attentive(places, texts, words)
    read = probe.predict(held_out)
    assert precision(read.words, held_out_words) > 85
    error = (read.text - held_out_texts).square().mean(0) / held_out_texts.var(0).clamp(min=1e-12)
    assert read.text.shape == (300, 3) and (error[1:] < 0.8).all()  # in the units of the texts
    assert (read.text[:, 0] == 5).all()  # a column that never varies
    (grid,) = choose_ridges(places.flatten(1), [words])
    assert precision(grid.predict(held_out.flatten(1)), held_out_words) > 85
    try:
        (pooled,) = choose_ridges(places.mean((2, 3)), [words])
    except PenaltyAtEdge:
        return
    assert precision(pooled.predict(held_out.mean((2, 3))), held_out_words) < 60


def test_it_is_the_same_for_a_seed_and_leaves_the_random_state_alone():
    data = sided_codes(60)
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (fit_attentive(*data, seed=seed).predict(data[0]) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.words, again.words) and torch.equal(first.text, again.text)
    assert not torch.equal(first.words, other.words)


def test_few_rows_are_given_enough_steps_to_learn_from():
    draw = torch.Generator().manual_seed(0)
    places = torch.randn(300, 32, 4, 4, generator=draw)
    said = places.mean((2, 3)) * 4
    texts = said @ torch.randn(32, 60, generator=draw) + 6 * torch.randn(300, 60, generator=draw)
    words = said[:, :20] + 2 * torch.randn(300, 20, generator=draw) > 1
    assert not fit_attentive(places, texts, words).is_constant


def test_codes_that_never_vary_give_the_constant_prediction():
    _, texts, words = sided_codes(50)
    probe = fit_attentive(torch.ones(50, 4, 2, 2), texts, words)
    read = probe.predict(torch.ones(3, 4, 2, 2))
    assert probe.is_constant
    assert (read.words == read.words[0]).all() and read.words.isfinite().all()
    torch.testing.assert_close(read.text[0], texts.mean(0), atol=0.2, rtol=0)


def test_it_takes_texts_alone_or_words_alone():
    places, texts, words = sided_codes(40)
    assert fit_attentive(places, texts, words[:, :0]).predict(places).words.shape == (40, 0)
    assert fit_attentive(places, texts[:, :0], words).predict(places).text.shape == (40, 0)


def test_bad_input_of_the_attentive_probe_is_refused():
    places, texts, words = sided_codes(20)
    for given, message in (
        ((places, texts[1:], words), "give n c h w, n d and n w, at least 5 rows"),
        ((places[:4], texts[:4], words[:4]), "at least 5 rows"),
        ((places.flatten(1), texts, words), "at least 5 rows"),
        ((places, texts[:, :0], words[:, :0]), "nothing to learn"),
        ((places.where(places < 1, torch.nan), texts, words), "places hold NaN"),
        ((places, texts.where(texts < 6, torch.inf), words), "texts hold NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_attentive(*given)
    probe = fit_attentive(places, texts, words)
    with pytest.raises(ValueError, match=r"places are \(4, 2, 4\) and the probe was fitted on \(4, 4, 4\)"):
        probe.predict(places[:, :, :2])
