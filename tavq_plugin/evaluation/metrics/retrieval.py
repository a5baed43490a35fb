"""Retrieval by cosine or by given scores: recall and ranks of the own key."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that moved

TIED = 1e-12  # scores that differ by less, which is rounding, count as equal


def recall(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 10, 50)) -> dict[str, float]:
    """Percent of queries whose own key (same row) is among the k of greatest cosine; n d, n d -> {"r1": …}.

    Both sides are centred first. Tied keys count as if in random order, so constant queries score as chance.

    >>> from torch import eye
    >>> recall(eye(4), eye(4), at=(1, 2))
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

    >>> from torch import tensor
    >>> own_ranks(tensor([[3.0, 1.0, 2.0], [9.0, 4.0, 5.0], [1.0, 1.0, 1.0]])).tolist()
    [1.0, 3.0, 2.0]
    """
    better, tied = _better_and_tied(score)
    return better + (tied + 1) / 2


def centred_cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosine of each query and each key after each side's mean is subtracted, float64; n d, n d -> n n."""
    if queries.shape != keys.shape:
        raise ValueError(f"queries are {tuple(queries.shape)} and keys {tuple(keys.shape)}: give one key per query")
    sides = [F.normalize(side.double() - side.double().mean(0), dim=1) for side in (queries, keys)]
    return sides[0] @ sides[1].T


def _better_and_tied(score: Tensor) -> tuple[Tensor, Tensor]:
    """How many keys are nearer than the own one, and how many are as near, itself counted; n n -> n, n."""
    if not score.isfinite().all():
        raise ValueError("a retrieval score is not finite: check the codes and the text embeddings for NaN")
    own = score.diagonal()[:, None]
    return (score > own + TIED).sum(1).double(), ((score - own).abs() <= TIED).sum(1).double()
