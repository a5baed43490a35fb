"""Whether another seed gives codes that say the same: word tables of matched codes, and images of words."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CODES = 2048  # most-used ones of a run that are matched


class Stability(NamedTuple):
    """Agreement of two runs, −1 to 1."""

    matched: float  # of the word tables of matched codes
    null: float  # the same for codes dealt at random


def word_table(histograms: Tensor, words: Tensor) -> Tensor:
    """How much more often a word is told of a code's images than of all; n k, n w bool -> k w, 0 for unused codes."""
    share = words.double() / words.sum(1, keepdim=True).clamp(min=1)
    weight = histograms.double()
    of_code = weight.T @ share / weight.sum(0)[:, None].clamp(min=1e-12)
    return torch.where(weight.sum(0)[:, None] > 0, of_code - share.mean(0), 0.0)


def code_word_stability(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], words: Tensor, *, most: int = CODES
) -> Stability:
    """Mean correlation of the word tables of matched codes of two runs, weighted by use; (n k, m k), (n k, m k), m w.

    Each run comes as its histograms of the training and of the held-out images. Codes have no names that two seeds
    share, so they are matched one to one by where they occur: the assignment of greatest total correlation between
    their shares in the training images. The words, and the images of the tables, take no part in the match: tables
    are of the held-out images. The null deals the matched codes at random.
    """
    from scipy.optimize import linear_sum_assignment

    sides = [_used(*side, most=most) for side in (first, second)]
    train = [_standard(histograms) for histograms, _ in sides]
    mine, theirs = linear_sum_assignment((train[0].T @ train[1]).numpy(), maximize=True)
    mine, theirs = torch.from_numpy(mine), torch.from_numpy(theirs)
    tables = [_standard(word_table(held_out, words).T) for _, held_out in sides]  # w k
    weight = sides[0][1].double().mean(0)[mine] * sides[1][1].double().mean(0)[theirs]
    weight = weight.sqrt()
    dealt = theirs[torch.randperm(len(theirs), generator=torch.Generator().manual_seed(0))]
    agree = [(tables[0][:, mine] * tables[1][:, other]).sum(0) for other in (theirs, dealt)]
    total = weight.sum().clamp(min=1e-12)
    return Stability(*((weight * each).sum().item() / total.item() for each in agree))


def word_image_stability(first: Tensor, second: Tensor) -> float:
    """Mean over words of the correlation between two runs' scores of the held-out images for it; n w, n w."""
    return (_standard(first) * _standard(second)).sum(0).mean().item()


def _used(train: Tensor, held_out: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """The same codes of both, most used in training first; unused ones are left out."""
    use = train.sum(0)
    chosen = use.argsort(descending=True, stable=True)[: min(most, int((use > 0).sum()))]
    return train[:, chosen], held_out[:, chosen]


def _standard(columns: Tensor) -> Tensor:
    """Columns of mean 0 and length 1, so that products are correlations; a constant one becomes 0."""
    columns = columns.double()
    return F.normalize(columns - columns.mean(0), dim=0)
