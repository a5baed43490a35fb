"""Retrieval by cosine or by given scores, and average precision of word scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def recall(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 10, 50)) -> dict[str, float]:
    """Percent of queries whose own key (same row) is among the k of greatest cosine; n d, n d -> {"r1": …}.

    Both sides are centred first. Tied keys count as if in random order, so constant queries score as chance.

    >>> recall(torch.eye(4), torch.eye(4), at=(1, 2))
    {'r1': 100.0, 'r2': 100.0}
    """
    return {name: 100 * share.mean().item() for name, share in recall_per_query(queries, keys, at=at).items()}


def recall_per_query(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 5, 10, 50)) -> dict[str, Tensor]:
    """`recall` of each query, 0 to 1; a query tied with others gets a fraction; n d, n d -> {"r1": n, …}."""
    if queries.shape != keys.shape:
        raise ValueError(f"queries are {tuple(queries.shape)} and keys {tuple(keys.shape)}: give one key per query")
    queries = F.normalize((queries - queries.mean(0)).double(), dim=1)
    keys = F.normalize((keys - keys.mean(0)).double(), dim=1)
    return recall_from_scores(queries @ keys.T, at=at)


def recall_from_scores(score: Tensor, *, at: Sequence[int] = (1, 5, 10, 50)) -> dict[str, Tensor]:
    """`recall_per_query` from scores, queries × keys, where greater is nearer; n n -> {"r1": n, …}.

    Each query's own key is on the diagonal. Raises ValueError for scores that are not finite.
    """
    if not score.isfinite().all():
        raise ValueError("a retrieval score is not finite: check the codes and the text embeddings for NaN")
    own = score.diagonal()[:, None]
    better = (score > own + 1e-12).sum(1).double()
    tied = ((score - own).abs() <= 1e-12).sum(1).double()  # counts the query's own key too
    return {f"r{k}": ((k - better) / tied).clamp(0, 1) for k in at}


def average_precision_per_image(scores: Tensor, present: Tensor) -> Tensor:
    """Each image's part of the mean average precision of ranking images for each word; n w, n w bool -> n.

    The mean over the images is exactly the mean average precision, in percent, over the words that any image has. A
    word's average precision is the mean, over the images that have it, of the precision down to that image's rank; an
    image's part sums this over its own words. If no image has a word, all are NaN.
    """
    order = scores.double().argsort(dim=0, descending=True, stable=True)
    hit = present.gather(0, order).double()
    precision = hit.cumsum(0) / torch.arange(1, len(hit) + 1, dtype=torch.float64)[:, None]
    own = torch.zeros_like(precision).scatter(0, order, precision * hit)
    count = present.sum(0)
    return 100 * len(own) * (own[:, count > 0] / count[count > 0]).sum(1) / (count > 0).sum()
