"""Code–word purity: mutual information between a code and the words of its image, above a permutation null."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tavq_plugin.evaluation.metrics.permuted_texts import chance_of

PERMUTATIONS = 50


class Purity(NamedTuple):
    """Mutual information of code and word, in thousandths of a bit."""

    information: float
    null: float  # mean over texts shuffled among the images
    excess: float  # information − null
    z: float  # excess over the null's standard deviation
    null_spread: float  # standard deviation over these texts: that of the excess' chance, whose mean is 0


def mutual_information(histograms: Tensor, words: Tensor) -> float:
    """Bits that the code at a random place carries about a random word of its image's text; n k, n w bool.

    The joint distribution of code and word is the mean, over the images with words, of (share of the code in the
    image) × (1 / number of its words).

    >>> codes, words = torch.eye(4), torch.eye(4, dtype=torch.bool)
    >>> mutual_information(codes, words)
    2.0
    """
    count = words.sum(1)
    has_words = count > 0
    word_share = words[has_words].double() / count[has_words, None]
    joint = histograms[has_words].double().T @ word_share / has_words.sum().clamp(min=1)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    nats = (torch.special.xlogy(joint, joint) - torch.special.xlogy(joint, independent)).sum()
    return (nats / torch.log(torch.tensor(2.0, dtype=torch.float64))).item()


def code_word_purity(histograms: Tensor, words: Tensor, *, permutations: int = PERMUTATIONS) -> Purity:
    """Mutual information of codes and words, and its null with texts shuffled among the images; n k, n w bool.

    A finite sample gives information above 0 by chance, and more with more codes in use, so report the excess. Raises
    ValueError if fewer than two texts have words.
    """
    has_words = words.any(1)
    if has_words.sum() < 2:
        raise ValueError(f"{int(has_words.sum())} texts have frequent words: purity needs at least two")
    histograms, words = histograms[has_words], words[has_words]
    histograms = histograms[:, histograms.sum(0) > 0]
    value = mutual_information(histograms, words)
    null = chance_of(lambda order: mutual_information(histograms, words[order]), len(words), permutations=permutations)
    excess = value - null.mean
    return Purity(1000 * value, 1000 * null.mean, 1000 * excess, excess / max(null.spread, 1e-12), 1000 * null.spread)
