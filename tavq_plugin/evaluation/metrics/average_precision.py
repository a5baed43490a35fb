"""Average precision of scores of words, of images or of places, with ties shared as in scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

TIED = 1e-12  # scores that differ by less than this share of a word's greatest score, which is rounding, are equal


class WordRanking:
    """Rows ranked by their scores for each word, once for many assignments of words to rows; n w.

    Raises ValueError for scores that are not finite.
    """

    def __init__(self, scores: Tensor) -> None:
        if not scores.isfinite().all():
            raise ValueError("a word score is not finite: check the codes for NaN")
        ranked, self.order = scores.T.double().contiguous().sort(dim=1, descending=True, stable=True)  # w n
        n = ranked.shape[1]
        ends = torch.ones_like(ranked, dtype=torch.bool)  # the last row of a group of one score
        ends[:, :-1] = ranked[:, :-1] - ranked[:, 1:] > TIED * ranked.abs().amax(1, keepdim=True)
        position = torch.arange(n).expand_as(ranked)
        self.end = position.where(ends, torch.tensor(n)).flip(1).cummin(1).values.flip(1)  # where a row's group ends

    def average_precision(self, present: Tensor) -> Tensor:
        """Each row's part of the mean average precision, in percent; their mean is it; n w bool -> n.

        The mean is over the words that any row has. A word's average precision is the mean, over the rows that have it,
        of the precision down to that row's score; a row's part sums this over its own words. Rows of one score share
        the precision at the end of their group, as in scikit-learn's average_precision_score: constant scores give the
        word's base rate, whatever the order of the rows. All parts are NaN if no row has a word.
        """
        hits = present.T.gather(1, self.order).double()
        precision = hits.cumsum(1).gather(1, self.end) / (self.end + 1)
        own = torch.zeros_like(precision).scatter(1, self.order, precision * hits)
        count = present.sum(0)
        return 100 * len(present) * (own[count > 0] / count[count > 0, None]).sum(0) / (count > 0).sum()


def average_precision_per_image(scores: Tensor, present: Tensor) -> Tensor:
    """Each image's part of the mean average precision of ranking images for each word; n w, n w bool -> n.

    See `WordRanking.average_precision`. Raises ValueError for two shapes, and for scores that are not finite.

    >>> scores, present = torch.tensor([[0.9], [0.5], [0.1]]), torch.tensor([[True], [False], [True]])
    >>> average_precision_per_image(scores, present).mean().round(decimals=1)
    tensor(83.3000, dtype=torch.float64)
    """
    if scores.shape != present.shape:
        raise ValueError(f"scores are {tuple(scores.shape)} and words {tuple(present.shape)}: give one score per word")
    return WordRanking(scores).average_precision(present)
