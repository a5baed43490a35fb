"""Whether codes of another seed carry the same words: by word tables of matched codes, and by word scores of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.metrics.permuted_texts import PERMUTATIONS, chance_of

CODES = 2048  # at most this many of a run's codes are matched: the most used ones


class Stability(NamedTuple):
    """Agreement of two runs' word tables of matched codes, −1 to 1."""

    matched: float
    dealt: float  # the same with texts dealt at random among the held-out images, mean over deals
    dealt_spread: float  # standard deviation over these deals

    @property
    def excess(self) -> float:
        """What the texts add: matched − dealt, −2 to 2; chance is 0."""
        return self.matched - self.dealt


def word_table(histograms: Tensor, words: Tensor) -> Tensor:
    """Share of a word in texts where a code occurs, minus its mean share; n k, n w bool -> k w, 0 for unused codes."""
    share = words.double() / words.sum(1, keepdim=True).clamp(min=1)
    weight = histograms.double()
    code_share = weight.T @ share / weight.sum(0)[:, None].clamp(min=1e-12)
    return torch.where(weight.sum(0)[:, None] > 0, code_share - share.mean(0), 0.0)


def code_word_stability(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    words: Tensor,
    *,
    most: int = CODES,
    permutations: int = PERMUTATIONS,
) -> Stability:
    """Mean correlation of the word tables of matched codes of two runs, weighted by use; (n k, m k), (n k, m k), m w.

    Each run is given as its code histograms of the training and of the held-out images. Code numbers mean nothing
    across seeds, so codes are matched one to one by where they occur: the assignment of greatest total correlation
    between their shares in the training images. The word tables come from the held-out images, so neither the words nor
    these images take part in the matching. Codes that occur in the same images have like tables with any texts, so the
    null keeps the matching and deals the texts at random among the held-out images, the same deal for both runs.
    Raises ValueError for fewer than two held-out images.
    """
    from scipy.optimize import linear_sum_assignment

    sides = [_most_used(*side, most=most) for side in (first, second)]
    train = [_unit_columns(histograms) for histograms, _ in sides]
    matching = linear_sum_assignment((train[0].T @ train[1]).numpy(), maximize=True)
    held_out = [side[1].double()[:, torch.from_numpy(codes)] for side, codes in zip(sides, matching, strict=True)]
    weight = (held_out[0].mean(0) * held_out[1].mean(0)).sqrt()
    weight = weight / weight.sum().clamp(min=1e-12)

    def agreement(texts: Tensor) -> float:
        one, other = (_unit_columns(word_table(histograms, texts).T) for histograms in held_out)  # w k
        return (weight * (one * other).sum(0)).sum().item()

    dealt = chance_of(lambda order: agreement(words[order]), len(words), permutations=permutations)
    return Stability(agreement(words), dealt.mean, dealt.spread)


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
