"""Which words the texts of images have, and how well codes tell them: frequent words, histograms, masked words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tavq_plugin.evaluation.probes import PENALTY, fit_ridge
from tavq_plugin.text.store import TextStore

PAIRS = 20_000  # of image and masked word, at most, that fit the masked-word probe


def frequent_words(store: TextStore, rows: Sequence[int], count: int) -> list[str]:
    """The words in most texts of these rows, at most `count`, ties in the alphabet's order."""
    frequency = store.subset(rows).unit_frequency("word")
    return sorted(frequency, key=lambda word: (-frequency[word], word))[:count]


def presence(store: TextStore, rows: Sequence[int], words: Sequence[str]) -> Tensor:
    """Which of the words each text has; n rows, w words -> n w bool."""
    if not store.vocabulary:
        return torch.zeros(len(rows), len(words), dtype=torch.bool)
    number = {word: i for i, word in enumerate(words)}
    column = torch.tensor([number.get(unit, -1) for unit in store.vocabulary], dtype=torch.long)
    ids, mask = store.lists["word"].pad(store.rows(rows))
    table = torch.zeros(len(rows), len(words) + 1, dtype=torch.bool)  # the last column takes other words
    table.scatter_(1, torch.where(mask, column[ids], -1) % (len(words) + 1), True)
    return table[:, : len(words)]


def histograms(indices: Tensor, size: int) -> Tensor:
    """Share of each code in each image; n h w -> n k.

    >>> histograms(torch.tensor([[[0, 0], [2, 1]]]), size=3)
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    flat = indices.flatten(1)
    counts = torch.zeros(len(flat), size).scatter_add_(1, flat, torch.ones(flat.shape))
    return counts / flat.shape[1]


class MaskedWords(NamedTuple):
    """Share of an image's masked words that a probe puts first; n each, NaN where a text has none."""

    with_codes: Tensor  # from the codes and the text's other words
    text_alone: Tensor  # from the text's other words


def masked_words(
    train: Tensor, held_out: Tensor, train_words: Tensor, held_out_words: Tensor, vectors: Tensor
) -> MaskedWords:
    """Each word of a text masked in turn and guessed among all w; n c, m c, n w bool, m w bool, w d -> m each.

    A ridge regression onto one-hot words reads the codes beside the mean vector of the text's other words; its
    greatest output that no other word of the text is, is the guess. The same without codes is the control: what
    codes tell is the difference.
    """
    _, words, rest = _masked(train_words, vectors)
    image, word, context = _masked(held_out_words, vectors)
    where = _masked_rows(train_words)
    if not len(where) or not len(image):
        nothing = torch.full((len(held_out),), torch.nan, dtype=torch.float64)
        return MaskedWords(nothing, nothing)
    kept = torch.arange(len(where))
    if len(where) > PAIRS:
        kept = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))[:PAIRS]
    target = torch.nn.functional.one_hot(words[kept], train_words.shape[1])
    others = held_out_words[image].clone()
    others[torch.arange(len(image)), word] = False

    def right(features: Tensor, asked: Tensor) -> Tensor:
        scores = fit_ridge(features, target, penalty=PENALTY).predict(asked).masked_fill(others, -torch.inf)
        hits = torch.zeros(len(held_out), dtype=torch.float64).index_add(0, image, (scores.argmax(1) == word).double())
        return hits / torch.bincount(image, minlength=len(held_out))

    return MaskedWords(
        right(torch.cat([train[where[kept]], rest[kept]], 1), torch.cat([held_out[image], context], 1)),
        right(rest[kept], context),
    )


def _masked_rows(present: Tensor) -> Tensor:
    return present.nonzero()[:, 0]


def _masked(present: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, word and the mean vector of the row's other words, for each word there; n w -> p, p, p d."""
    row, word = present.nonzero().T
    total, held = present.to(vectors) @ vectors, present.sum(1)
    return row, word, (total[row] - vectors[word]) / (held[row] - 1).clamp(min=1)[:, None]
