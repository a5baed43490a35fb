"""Retrieval by cosine or by given scores: recall and ranks; and average precision of word scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TIED = 1e-12  # scores that differ by less, which is rounding, count as equal


def recall(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 10, 50)) -> dict[str, float]:
    """Percent of queries whose own key (same row) is among the k of greatest cosine; n d, n d -> {"r1": …}.

    Both sides are centred first. Tied keys count as if in random order, so constant queries score as chance.

    >>> recall(torch.eye(4), torch.eye(4), at=(1, 2))
    {'r1': 100.0, 'r2': 100.0}
    """
    return {name: 100 * share.mean().item() for name, share in recall_per_query(queries, keys, at=at).items()}


def recall_per_query(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 5, 10, 50)) -> dict[str, Tensor]:
    """`recall` of each query, 0 to 1; a query tied with others gets a fraction; n d, n d -> {"r1": n, …}."""
    return recall_from_scores(centred_cosines(queries, keys), at=at)


def recall_from_scores(score: Tensor, *, at: Sequence[int] = (1, 5, 10, 50)) -> dict[str, Tensor]:
    """`recall_per_query` from scores, queries × keys, where greater is nearer; n n -> {"r1": n, …}.

    Each query's own key is on the diagonal. Raises ValueError for scores that are not finite.
    """
    better, tied = _better_and_tied(score)
    return {f"r{k}": ((k - better) / tied).clamp(0, 1) for k in at}


def own_ranks(score: Tensor) -> Tensor:
    """Rank of each query's own key, the nearest has rank 1, from scores as in `recall_from_scores`; n n -> n.

    Tied keys share their mean rank, which is what a random order gives on average.

    >>> own_ranks(torch.tensor([[3.0, 1.0, 2.0], [9.0, 4.0, 5.0], [1.0, 1.0, 1.0]])).tolist()
    [1.0, 3.0, 2.0]
    """
    better, tied = _better_and_tied(score)
    return better + (tied + 1) / 2


class Retrieval(NamedTuple):
    """How each of n images finds its own text. `recall_from_scores(scores.T)` finds images by text."""

    recalls: dict[str, Tensor]  # {"r10": n}, 0 to 1: the own text is among the 10 nearest
    ranks: Tensor  # n, 1 is best
    scores: Tensor  # n n, cosine of image and text, both centred; images first

    @property
    def median_rank(self) -> float:
        """Median rank over images; the mean of the two middle ranks for an even n. Chance is (n + 1) / 2."""
        return self.ranks.quantile(0.5).item()


def retrieval_of(predicted: Tensor, text: Tensor, *, at: Sequence[int] = (1, 5, 10, 50)) -> Retrieval:
    """Retrieval of texts by what a probe predicts from images, by cosine; both sides are centred; n d, n d.

    Raises ValueError for two shapes, and for values that are not finite.
    """
    scores = centred_cosines(predicted, text)
    return Retrieval(recall_from_scores(scores, at=at), own_ranks(scores), scores)


def centred_cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosine of each query and each key after each side's mean is subtracted, float64; n d, n d -> n n."""
    if queries.shape != keys.shape:
        raise ValueError(f"queries are {tuple(queries.shape)} and keys {tuple(keys.shape)}: give one key per query")
    sides = [F.normalize(side.double() - side.double().mean(0), dim=1) for side in (queries, keys)]
    return sides[0] @ sides[1].T


def average_precision_per_image(scores: Tensor, present: Tensor) -> Tensor:
    """Each image's part of the mean average precision of ranking images for each word; n w, n w bool -> n.

    The mean over the images is exactly the mean average precision, in percent, over the words that any image has. A
    word's average precision is the mean, over the images that have it, of the precision down to that image's score; an
    image's part sums this over its own words. Images of one score share the precision at the end of their group, as in
    scikit-learn's average_precision_score: constant scores give the word's base rate, whatever the order of the images.
    If no image has a word, all are NaN. Raises ValueError for two shapes, and for scores that are not finite.
    """
    if scores.shape != present.shape:
        raise ValueError(f"scores are {tuple(scores.shape)} and words {tuple(present.shape)}: give one score per word")
    if not scores.isfinite().all():
        raise ValueError("a word score is not finite: check the codes for NaN")
    ranked, order = scores.double().sort(dim=0, descending=True, stable=True)
    hits = present.gather(0, order).double()
    n = len(ranked)
    rounding = TIED * ranked.abs().amax(0)
    ends = torch.ones_like(ranked, dtype=torch.bool)  # the last image of a group of one score
    ends[:-1] = ranked[:-1] - ranked[1:] > rounding
    position = torch.arange(n)[:, None].expand_as(ranked)
    end = position.where(ends, torch.tensor(n)).flip(0).cummin(0).values.flip(0)
    precision = hits.cumsum(0).gather(0, end) / (end + 1)
    own = torch.zeros_like(precision).scatter(0, order, precision * hits)
    count = present.sum(0)
    return 100 * n * (own[:, count > 0] / count[count > 0]).sum(1) / (count > 0).sum()


def _better_and_tied(score: Tensor) -> tuple[Tensor, Tensor]:
    """How many keys are nearer than the own one, and how many are as near, itself counted; n n -> n, n."""
    if not score.isfinite().all():
        raise ValueError("a retrieval score is not finite: check the codes and the text embeddings for NaN")
    own = score.diagonal()[:, None]
    return (score > own + TIED).sum(1).double(), ((score - own).abs() <= TIED).sum(1).double()
