"""Text alignment measured through the quantized codes, on held-out pairs, with one probe for every run.

A projection trained with the loss flatters its own method, so the headline numbers fit the same ridge
regression afterwards on every run's codes, on the training split, and score it on held-out images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTY = 300.0  # of the ridge regressions, on standardised features


class Ridge(NamedTuple):
    """A fitted linear map of standardised features; call `predict`."""

    mean: Tensor  # c
    scale: Tensor  # c
    weight: Tensor  # c d
    offset: Tensor  # d

    def predict(self, features: Tensor) -> Tensor:
        """n c -> n d, float64."""
        return (features.double() - self.mean) / self.scale @ self.weight + self.offset


def fit_ridge(features: Tensor, targets: Tensor, *, penalty: float = PENALTY) -> Ridge:
    """Ridge regression on standardised features, offset unpenalised; n c, n d -> c d.

    Features that never vary get weight 0. Solved in float64: (XᵀX + penalty·I) W = Xᵀ(Y − mean Y).
    """
    if len(features) != len(targets):
        raise ValueError(f"{len(features)} rows of features for {len(targets)} of targets: give one each an image")
    features, targets = features.double(), targets.double()
    mean, spread = features.mean(0), features.std(0, correction=0)
    scale = torch.where(spread > 1e-12, spread, torch.inf)
    x, offset = (features - mean) / scale, targets.mean(0)
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return Ridge(mean, scale, torch.linalg.solve(gram, x.T @ (targets - offset)), offset)


def recall(queries: Tensor, keys: Tensor, *, at: Sequence[int] = (1, 10, 50)) -> dict[str, float]:
    """Percent of queries whose own key (same row) is among the k of greatest cosine; n d, n d -> {"r1": …}.

    Both sides are centred first. Ties are broken as by a fair lot, so constant queries score as chance.

    >>> recall(torch.eye(4), torch.eye(4), at=(1, 2))
    {'r1': 100.0, 'r2': 100.0}
    """
    if queries.shape != keys.shape:
        raise ValueError(f"queries are {tuple(queries.shape)} and keys {tuple(keys.shape)}: give one key a query")
    queries = F.normalize((queries - queries.mean(0)).double(), dim=1)
    keys = F.normalize((keys - keys.mean(0)).double(), dim=1)
    score = queries @ keys.T
    own = score.diagonal()[:, None]
    better = (score > own + 1e-12).sum(1).double()
    tied = ((score - own).abs() <= 1e-12).sum(1).double()  # itself among them
    return {f"r{k}": 100 * ((k - better) / tied).clamp(0, 1).mean().item() for k in at}


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
