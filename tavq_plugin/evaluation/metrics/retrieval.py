"""Retrieval by cosine, and average precision of word scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def recall(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 10, 50)) -> dict[str, float]:
    """Percent of queries whose own key (same row) is among the k of greatest cosine; n d, n d -> {"r1": …}.

    Both sides are centred first. Ties are broken as by a fair lot, so constant queries score as chance.

    >>> recall(torch.eye(4), torch.eye(4), at=(1, 2))
    {'r1': 100.0, 'r2': 100.0}
    """
    return {name: 100 * share.mean().item() for name, share in found(queries, keys, at=at).items()}


def found(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 5, 10, 50)) -> dict[str, Tensor]:
    """The same of each query, 0 to 1 (a tie is shared); n d, n d -> {"r1": n, …}."""
    if queries.shape != keys.shape:
        raise ValueError(f"queries are {tuple(queries.shape)} and keys {tuple(keys.shape)}: give one key a query")
    queries = F.normalize((queries - queries.mean(0)).double(), dim=1)
    keys = F.normalize((keys - keys.mean(0)).double(), dim=1)
    return found_by(queries @ keys.T, at=at)


def found_by(score: Tensor, *, at: Sequence[int] = (1, 5, 10, 50)) -> dict[str, Tensor]:
    """The same from scores, greater is nearer, each query's own key on the diagonal; n n -> {"r1": n, …}."""
    if not score.isfinite().all():
        raise ValueError("a retrieval score is not finite: the codes or the texts hold NaN")
    own = score.diagonal()[:, None]
    better = (score > own + 1e-12).sum(1).double()
    tied = ((score - own).abs() <= 1e-12).sum(1).double()  # itself among them
    return {f"r{k}": ((k - better) / tied).clamp(0, 1) for k in at}


def mean_average_precision(scores: Tensor, present: Tensor) -> float:
    """Mean over words of the average precision of ranking images for a word, percent; n w, n w bool.

    Words that no held-out image has are left out; NaN where none is left.
    """
    from torchmetrics.functional.classification import binary_average_precision

    words = present.any(0).nonzero().flatten().tolist()
    ranks = scores.double().argsort(0).argsort(0).double() / len(scores)  # order alone counts, within [0, 1]
    return (
        100 * torch.stack([binary_average_precision(ranks[:, w], present[:, w].long()) for w in words]).mean().item()
        if words
        else float("nan")
    )


def precision_shares(scores: Tensor, present: Tensor) -> Tensor:
    """What each image adds to `mean_average_precision`, percent: their mean is it exactly; n w, n w bool -> n.

    A word's average precision is the mean, over the images that have it, of the precision down to that image; an
    image adds its own part for each of its words. NaN everywhere where no word is present.
    """
    order = scores.double().argsort(dim=0, descending=True, stable=True)
    hit = present.gather(0, order).double()
    precision = hit.cumsum(0) / torch.arange(1, len(hit) + 1, dtype=torch.float64)[:, None]
    own = torch.zeros_like(precision).scatter(0, order, precision * hit)
    held = present.sum(0)
    return 100 * len(own) * (own[:, held > 0] / held[held > 0]).sum(1) / (held > 0).sum()
