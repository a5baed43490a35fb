"""Chance of a text metric: its own value when texts are dealt at random among the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PERMUTATIONS = 20


class Chance(NamedTuple):
    """A metric's value over permutations of the texts, in the metric's unit."""

    mean: float
    spread: float  # standard deviation over the permutations


def permuted_positions(n: int, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Iterator[Tensor]:
    """Random orders of n positions, the same for the same seed; n int64 each. The caller's random state is kept.

    Raises ValueError for fewer than two texts or permutations.
    """
    if n < 2:
        raise ValueError(
            f"{n} texts cannot be dealt among images: chance needs at least two texts; give more images with text"
        )
    if permutations < 2:
        raise ValueError(f"permutations is {permutations}: the spread of chance needs at least 2")
    draw = torch.Generator().manual_seed(seed)
    for _ in range(permutations):
        yield torch.randperm(n, generator=draw)


def chance_of(metric: Callable[[Tensor], float], n: int, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Chance:
    """Mean and spread of a metric over random deals of n texts.

    metric: called with the positions of the texts, n int64, in the order in which the images get them. Raises
    ValueError for a value that is not finite, and for fewer than two texts or permutations.

    >>> chance_of(lambda order: 100 * (order == torch.arange(50)).double().mean().item(), 50, permutations=200).mean
    2.12
    """
    values = [float(metric(order)) for order in permuted_positions(n, permutations=permutations, seed=seed)]
    return chance_from(values)


def chance_from(values: list[float]) -> Chance:
    """Mean and spread of values that are computed already. Raises ValueError for a value that is not finite."""
    if not all(map(math.isfinite, values)):
        raise ValueError(f"a metric of permuted texts came out as {values}: give it finite scores of images with text")
    numbers = torch.tensor(values, dtype=torch.float64)
    return Chance(numbers.mean().item(), numbers.std().item())
