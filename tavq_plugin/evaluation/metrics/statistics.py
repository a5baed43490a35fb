"""Whether a difference between two methods would hold with other seeds and on other images.

Values are crossed: every seed (row) is measured on the same images (columns). In the random-effects model
value = mean + seed + image + rest, the variance of the mean is a seeds' part, MS_seed / (s n), plus an images' part,
(MS_image − MS_rest) / (s n), at least 0. Half the width of the interval is the root of Σ t² · part, where t is the
quantile of Student's t for that part's own degrees of freedom, s − 1 or n − 1 (Banerjee 1960, for sums of
independent parts). Such an interval covers the mean at least as often as it says, whatever the ratio of the parts; it
is the ordinary t interval where one part is 0. Satterthwaite's degrees of freedom would give narrower intervals, but in
the simulation of the tests they exclude a true 0 in up to 13 % of comparisons with two seeds and 8 % with three (the
bootstrap over images and seeds, which stood here before: 14–45 % and 7–25 %).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtrinc, stdtr, stdtridf, stdtrit
from torch import Tensor

SIGNIFICANCE = 0.05  # two-sided: intervals cover 95 %
POWER = 0.8
SEEDS_TO_TEST = 3  # with fewer seeds there is no p
SMALLEST_P = 1e-200
ROUNDING = 1e-12  # a standard error below this share of the greatest value is rounding, and counts as 0


class Interval(NamedTuple):
    """A mean and its 95 % interval, None for a single value."""

    mean: float
    low: float | None
    high: float | None
    over: str | None  # "seeds and images", "seeds" or "images": what varies between samples


class Difference(NamedTuple):
    """Mean of first − second and what is known about it; fields are None where they cannot be known."""

    mean: float
    low: float | None  # 95 % interval
    high: float | None
    p: float | None  # two-sided; None below three seeds
    df: float | None  # of the t distribution with the same interval
    detectable: float | None  # a true difference of this size is found in 80 % of such comparisons
    over: str | None


class Intervals(NamedTuple):
    """Means and 95 % intervals of many tables at once; k each."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class _Noise(NamedTuple):
    variances: np.ndarray  # parts of the variance of the mean; parts ...
    df: np.ndarray  # degrees of freedom of each part; parts
    over: str | None


def difference(first: Tensor, second: Tensor) -> Difference:
    """Difference between the means of two methods with the same seeds and images; s n, s n, or s, s.

    Per-image values (s n) are tested over seeds and images; with one seed there is an interval over the images alone.
    Values per seed (s) are tested by the paired t test. Below three seeds p is None, and everything else is there.
    Images without a finite value for both methods, with every seed, are left out. `detectable` has the same standard
    error and degrees of freedom as the interval: by the noncentral t, 80 % power at the two-sided 5 % level.

    Where nothing varies, the interval has no width. p is then 1 for no difference, and 0 for one that is the same in
    every image and seed; values per seed that do not vary leave p None, since counts often agree by accident.

    Raises ValueError if shapes differ, which means other seeds or images, or if nothing is left to compare.

    >>> from torch import tensor
    >>> shown = difference(tensor([3.0, 5.0, 4.5]), tensor([1.0, 2.0, 3.0]))
    >>> [round(value, 2) for value in shown[:6]], shown.over
    ([2.17, 0.27, 4.06, 0.04, 2.0, 2.49], 'seeds')
    """
    if first.shape != second.shape:
        raise ValueError(
            f"{tuple(first.shape)} and {tuple(second.shape)}: a paired difference needs the same seeds and images "
            "of both methods; compare the seeds that both have"
        )
    values = _table_of(first.double() - second.double())
    noise, mean = _noise_of(values), float(values.mean())
    if noise.over is None:
        return Difference(mean, None, None, None, None, None, None)
    scale = max(first.abs().nan_to_num(posinf=0).max().item(), second.abs().nan_to_num(posinf=0).max().item())
    error = float(noise.variances.sum()) ** 0.5
    if error <= ROUNDING * scale:
        same = abs(mean) <= ROUNDING * scale
        p = 1.0 if same else 0.0 if noise.over == "seeds and images" else None
        p = p if len(values) >= SEEDS_TO_TEST else None
        return Difference(mean, mean, mean, p, float(noise.df.min()), 0.0, noise.over)
    half = float(_half_width(noise, SIGNIFICANCE))
    df = float(np.clip(stdtridf(1 - SIGNIFICANCE / 2, half / error), noise.df.min(), noise.df.max()))
    detectable = float(nctdtrinc(df, 1 - POWER, half / error)) * error
    p = _p_of(mean, noise) if len(values) >= SEEDS_TO_TEST else None
    return Difference(mean, mean - half, mean + half, p, df, detectable, noise.over)


def mean_interval(values: Tensor) -> Interval:
    """The mean of one method's values and its 95 % interval; s n or s.

    Images without a finite value with every seed are left out. Raises ValueError if no value is left.

    >>> from torch import tensor
    >>> mean_interval(tensor([[1.0, 2.0, 3.0]])).over
    'images'
    """
    table = _table_of(values.double())
    noise, mean = _noise_of(table), float(table.mean())
    if noise.over is None:
        return Interval(mean, None, None, None)
    half = float(_half_width(noise, SIGNIFICANCE))
    return Interval(mean, mean - half, mean + half, noise.over)


def intervals(values: Tensor) -> Intervals:
    """The means of many complete tables and their 95 % intervals; k s n with more than one seed or image."""
    tables = values.double().numpy()
    mean, half = tables.mean((-2, -1)), _half_width(_noise_of(tables), SIGNIFICANCE)
    return Intervals(mean, mean - half, mean + half)


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's adjusted p-values, which keep the probability of any false positive below .05; None stays None.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    {'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': None}
    """
    known = {name: value for name, value in p.items() if value is not None}
    if outside := {name: value for name, value in known.items() if not 0 <= value <= 1}:
        raise ValueError(f"p-values lie between 0 and 1, but these came: {outside}")
    adjusted: dict[str, float | None] = dict.fromkeys(p)
    reached = 0.0
    for rank, name in enumerate(sorted(known, key=known.__getitem__)):
        reached = max(reached, min(1.0, (len(known) - rank) * known[name]))
        adjusted[name] = reached
    return adjusted


def _table_of(values: Tensor) -> np.ndarray:
    """The values as seeds × images, without images that lack a value; s n or s -> s n'."""
    if values.ndim not in (1, 2) or not values.numel():
        raise ValueError(f"values of shape {tuple(values.shape)}: give seeds × images, or one value per seed")
    if values.ndim == 1:
        if not values.isfinite().all():
            raise ValueError(f"values per seed must be finite, got {values.tolist()}")
        return values[:, None].numpy()
    kept = values[:, values.isfinite().all(0)]
    if not kept.numel():
        raise ValueError("no image has a finite value with every seed: there is nothing to compare")
    return kept.numpy()


def _noise_of(values: np.ndarray) -> _Noise:
    """The parts of the variance of the mean of seeds × images; ... s n."""
    seeds, images = values.shape[-2:]
    by_seed, by_image = values.mean(-1, keepdims=True), values.mean(-2, keepdims=True)
    if seeds == images == 1:
        return _Noise(np.zeros(0), np.zeros(0), None)
    if images == 1:
        return _Noise(values.var((-2, -1), ddof=1)[None] / seeds, np.array([seeds - 1.0]), "seeds")
    if seeds == 1:
        return _Noise(values.var((-2, -1), ddof=1)[None] / images, np.array([images - 1.0]), "images")
    rest = values - by_seed - by_image + values.mean((-2, -1), keepdims=True)
    df = np.array([seeds - 1.0, images - 1.0])
    seed_part = by_seed.var((-2, -1), ddof=1) / seeds
    image_part = by_image.var((-2, -1), ddof=1) / images - (rest**2).sum((-2, -1)) / (df.prod() * seeds * images)
    return _Noise(np.stack([seed_part, image_part.clip(0)]), df, "seeds and images")


def _half_width(noise: _Noise, significance: float) -> np.ndarray:
    """Half the width of the interval that excludes the true mean in at most this share of all cases."""
    t = stdtrit(noise.df, significance / 2)
    return np.sqrt((t**2 * noise.variances.T).sum(-1)).T


def _p_of(mean: float, noise: _Noise) -> float:
    """The significance at which the interval just reaches 0; it is between the p-values of the parts' own df."""
    ratio = -abs(mean) / float(noise.variances.sum()) ** 0.5
    low, high = (max(2 * float(stdtr(df, ratio)), SMALLEST_P) for df in (noise.df.max(), noise.df.min()))

    def excess(log_p: float) -> float:
        t = stdtrit(noise.df, math.exp(log_p) / 2)
        return float(t**2 @ noise.variances) - mean**2

    start, end = math.log(low) - 1e-6, min(math.log(high) + 1e-6, 0.0)
    if end <= math.log(SMALLEST_P) + 1e-6 or not excess(start) > 0 > excess(end):
        return high  # one part has all the noise, or p is 1, or it is too small to be written
    return math.exp(brentq(excess, start, end))
