"""Whether codes of another seed carry the same words: by word tables of matched codes, and by word scores of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CODES = 2048  # at most this many of a run's codes are matched: the most used ones


class Stability(NamedTuple):
    """Agreement of two runs, −1 to 1."""

    matched: float  # of the word tables of matched codes
    null: float  # the same for codes matched at random


def word_table(histograms: Tensor, words: Tensor) -> Tensor:
    """Share of a word in texts where a code occurs, minus its mean share; n k, n w bool -> k w, 0 for unused codes."""
    share = words.double() / words.sum(1, keepdim=True).clamp(min=1)
    weight = histograms.double()
    code_share = weight.T @ share / weight.sum(0)[:, None].clamp(min=1e-12)
    return torch.where(weight.sum(0)[:, None] > 0, code_share - share.mean(0), 0.0)


def code_word_stability(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], words: Tensor, *, most: int = CODES
) -> Stability:
    """Mean correlation of the word tables of matched codes of two runs, weighted by use; (n k, m k), (n k, m k), m w.

    Each run is given as its code histograms of the training and of the held-out images. Code numbers mean nothing
    across seeds, so codes are matched one to one by where they occur: the assignment of greatest total correlation
    between their shares in the training images. The word tables come from the held-out images, so neither the words nor
    these images take part in the matching. The null matches the same codes at random.
    """
    from scipy.optimize import linear_sum_assignment

    sides = [_most_used(*side, most=most) for side in (first, second)]
    train = [_unit_columns(histograms) for histograms, _ in sides]
    mine, theirs = map(torch.from_numpy, linear_sum_assignment((train[0].T @ train[1]).numpy(), maximize=True))
    tables = [_unit_columns(word_table(held_out, words).T) for _, held_out in sides]  # w k
    weight = (sides[0][1].double().mean(0)[mine] * sides[1][1].double().mean(0)[theirs]).sqrt()
    shuffled = theirs[torch.randperm(len(theirs), generator=torch.Generator().manual_seed(0))]
    correlations = [(tables[0][:, mine] * tables[1][:, other]).sum(0) for other in (theirs, shuffled)]
    total = weight.sum().clamp(min=1e-12)
    return Stability(*((weight * correlation).sum().item() / total.item() for correlation in correlations))


def word_image_stability(first: Tensor, second: Tensor) -> float:
    """Correlation between two runs' scores of the held-out images for a word, mean over words; n w, n w."""
    return (_unit_columns(first) * _unit_columns(second)).sum(0).mean().item()


def _most_used(train: Tensor, held_out: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """Both histograms for the `most` codes that the training images use most, in that order, without unused codes."""
    use = train.sum(0)
    chosen = use.argsort(descending=True, stable=True)[: min(most, int((use > 0).sum()))]
    return train[:, chosen], held_out[:, chosen]


def _unit_columns(columns: Tensor) -> Tensor:
    """Columns of mean 0 and length 1, so that products are correlations; a constant column becomes 0."""
    columns = columns.double()
    return F.normalize(columns - columns.mean(0), dim=0)
