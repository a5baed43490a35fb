"""Words of texts and how well codes predict them: frequent words, code histograms, masked words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.metrics.permuted_texts import Chance, chance_from, permuted_positions
from tavq_plugin.evaluation.probes.ridge import PENALTIES, Ridge, choose_ridges
from tavq_plugin.text.store import TextStore

PAIRS = 20_000  # the masked-word probe is fitted on at most this many (image, masked word) pairs
OTHER_CODES = 5  # permutations of the images whose codes stand in for an image's own


def frequent_words(store: TextStore, rows: Sequence[int], count: int) -> list[str]:
    """The `count` words that occur in the most texts of these rows; ties in alphabetical order."""
    frequency = store.subset(torch.as_tensor(rows)).unit_frequency("word")
    return sorted(frequency, key=lambda word: (-frequency[word], word))[:count]


def word_presence(store: TextStore, rows: Sequence[int], words: Sequence[str]) -> Tensor:
    """Which of the words each text has; n rows, w words -> n w bool."""
    if not store.vocabulary:
        return torch.zeros(len(rows), len(words), dtype=torch.bool)
    number = {word: i for i, word in enumerate(words)}
    column = torch.tensor([number.get(unit, -1) for unit in store.vocabulary], dtype=torch.long)
    ids, mask = store.lists["word"].pad(store.rows(torch.as_tensor(rows)))
    table = torch.zeros(len(rows), len(words) + 1, dtype=torch.bool)  # the last column collects all other words
    table.scatter_(1, torch.where(mask, column[ids], -1) % (len(words) + 1), True)
    return table[:, : len(words)]


def code_histograms(indices: Tensor, size: int) -> Tensor:
    """Share of each code in each image; n h w -> n k.

    >>> code_histograms(torch.tensor([[[0, 0], [2, 1]]]), size=3)
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    flat = indices.flatten(1)
    counts = torch.zeros(len(flat), size).scatter_add_(1, flat, torch.ones(flat.shape))
    return counts / flat.shape[1]


class MaskedWords(NamedTuple):
    """Share of an image's masked words that a probe ranks first; one value per image, NaN if its text has none."""

    with_codes: Tensor  # from the codes and the text's other words
    text_alone: Tensor  # from the text's other words
    with_other_codes: Tensor  # from a random image's codes and the text's other words, mean over permutations
    chance: Chance | None  # of the mean of with_codes: that mean with other codes; None if no image has a value


class _Maskings(NamedTuple):
    """Every pair of a text and one of its words, which is masked."""

    text: Tensor  # p
    word: Tensor  # p
    context: Tensor  # p d: mean vector of the text's other words


def masked_words(
    train: Tensor,
    held_out: Tensor,
    train_words: Tensor,
    held_out_words: Tensor,
    vectors: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
) -> MaskedWords:
    """Mask each word of a text in turn and guess it among all w words; n c, m c, n w bool, m w bool, w d -> m, m.

    A ridge regression onto one-hot words reads the codes and the mean vector of the text's other words. Its guess is
    the word of greatest output that is not in the rest of the text. There are two controls. The same regression without
    codes: the difference is what codes add. And the same fitted probe that is given the codes of a random held-out
    image: if it does as well, the difference does not come from what the image's own codes say. Each regression chooses
    its penalty on the training texts. Raises ValueError for fewer than two held-out images, and `PenaltyAtEdge`.
    """
    fit, test = _maskings(train_words, vectors), _maskings(held_out_words, vectors)
    if not len(fit.text) or not len(test.text):
        no_values = torch.full((len(held_out),), torch.nan, dtype=torch.float64)
        return MaskedWords(no_values, no_values, no_values, None)
    if len(fit.text) > PAIRS:
        chosen = torch.randperm(len(fit.text), generator=torch.Generator().manual_seed(0))[:PAIRS]
        fit = _Maskings(*(part[chosen] for part in fit))
    target = F.one_hot(fit.word, train_words.shape[1])
    (with_codes,) = choose_ridges(torch.cat([train[fit.text], fit.context], 1), [target], penalties=penalties)
    (text_alone,) = choose_ridges(fit.context, [target], penalties=penalties)
    other_words = held_out_words[test.text].clone()
    other_words[torch.arange(len(test.text)), test.word] = False

    def share_right(probe: Ridge, features: Tensor) -> Tensor:
        scores = probe.predict(features)
        right = (scores.masked_fill(other_words, -torch.inf).argmax(1) == test.word).double()
        hits = torch.zeros(len(held_out), dtype=torch.float64).index_add(0, test.text, right)
        return hits / torch.bincount(test.text, minlength=len(held_out))

    def share_right_with(codes: Tensor) -> Tensor:
        return share_right(with_codes, torch.cat([codes[test.text], test.context], 1))

    orders = permuted_positions(len(held_out), permutations=OTHER_CODES)
    others = torch.stack([share_right_with(held_out[order]) for order in orders])
    return MaskedWords(
        share_right_with(held_out),
        share_right(text_alone, test.context),
        others.mean(0),
        chance_from(others.nanmean(1).tolist()),
    )


def _maskings(present: Tensor, vectors: Tensor) -> _Maskings:
    """All words of all texts, masked one at a time; n w bool, w d."""
    text, word = present.nonzero().T
    total, count = present.to(vectors) @ vectors, present.sum(1)
    return _Maskings(text, word, (total[text] - vectors[word]) / (count[text] - 1).clamp(min=1)[:, None])
