"""The paired bootstrap: would a difference between two methods hold on other images and other seeds?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = 2000


class Difference(NamedTuple):
    """Mean of first − second, its 95 % interval and the two-sided p of its sign."""

    mean: float
    low: float
    high: float
    p: float  # at least 2 / (draws + 1)


def paired_bootstrap(first: Tensor, second: Tensor, *, over_seeds: bool = True, draws: int = DRAWS) -> Difference:
    """Difference between the means of two methods' per-image values, same images and seeds; s n, s n.

    Images are resampled with replacement, the same ones for both methods and every seed; with `over_seeds` and more
    than one seed, seeds are resampled as well. Images that are NaN for either method are left out. Raises ValueError if
    shapes differ or no image is left.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"{tuple(first.shape)} and {tuple(second.shape)}: give both as seeds × images, of one shape")
    differences = (first - second).double()
    differences = differences[:, differences.isfinite().all(0)]
    seeds, images = differences.shape
    if not images:
        raise ValueError("no image has a value for both methods: there is nothing to compare")
    draw = torch.Generator().manual_seed(0)
    picked = torch.randint(images, (draws, images), generator=draw)
    counts = torch.zeros(draws, images, dtype=torch.float64)
    counts.scatter_add_(1, picked, torch.ones(draws, images, dtype=torch.float64))
    by_seed = counts @ differences.T / images  # draws × seeds
    if over_seeds and seeds > 1:
        by_seed = by_seed.gather(1, torch.randint(seeds, (draws, seeds), generator=draw))
    means = by_seed.mean(1)
    below = min(int((means <= 0).sum()), int((means >= 0).sum()))
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Difference(differences.mean().item(), low, high, min(1.0, 2 * (below + 1) / (draws + 1)))
