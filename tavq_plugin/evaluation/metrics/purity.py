"""Code–word purity: what a code tells of the words of its image, in mutual information above a permutation null."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PERMUTATIONS = 50


class Purity(NamedTuple):
    """Mutual information of code and word, in thousandths of a bit."""

    information: float
    null: float  # mean over texts dealt to other images
    excess: float  # information − null
    z: float  # excess over the null's standard deviation


def mutual_information(histograms: Tensor, words: Tensor) -> float:
    """Bits that the code at a random place tells of a random word of its image's text; n k, n w bool.

    The joint distribution of code and word is the mean, over the images with words, of (share of the code in the
    image) × (1 / number of its words).

    >>> codes, words = torch.eye(4), torch.eye(4, dtype=torch.bool)
    >>> mutual_information(codes, words)
    2.0
    """
    held = words.sum(1)
    told = held > 0
    joint = histograms[told].double().T @ (words[told].double() / held[told, None]) / told.sum().clamp(min=1)
    alone = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return ((torch.special.xlogy(joint, joint) - torch.special.xlogy(joint, alone)).sum() / torch.log(
        torch.tensor(2.0, dtype=torch.float64)
    )).item()  # fmt: skip


def code_word_purity(histograms: Tensor, words: Tensor, *, permutations: int = PERMUTATIONS) -> Purity:
    """The information of codes about words, and what chance gives: the same texts dealt to the images at random.

    Finite samples alone give information above 0, more so with more codes in use; so the excess is the figure.
    Raises ValueError where fewer than two texts have words.
    """
    told = words.any(1)
    if told.sum() < 2:
        raise ValueError(f"{int(told.sum())} texts have frequent words: purity needs two at least")
    histograms, words = histograms[told], words[told]
    histograms = histograms[:, histograms.sum(0) > 0]
    draw = torch.Generator().manual_seed(0)
    value = mutual_information(histograms, words)
    null = torch.tensor(
        [mutual_information(histograms, words[torch.randperm(len(words), generator=draw)]) for _ in range(permutations)]
    )
    excess = value - null.mean().item()
    return Purity(1000 * value, 1000 * null.mean().item(), 1000 * excess, excess / max(null.std().item(), 1e-12))
