"""Linear probes through which quantized codes are evaluated: ridge regressions, fitted alike for every run.

A projection that was trained with the loss flatters its own method. So a probe is fitted after training, on the run's
codes of the training images, and scored on held-out images. Its penalty is chosen on the training images too: a fixed
penalty favours codes of one width or codebook size over another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.eigenvectors import eigenvectors

PENALTY = 300.0  # ridge penalty, on standardised features
PENALTIES = tuple(10 ** (half / 2) for half in range(13))  # 1 … 10⁶, two a decade
WIDENINGS = 4  # decades that are added, one at a time, where the best penalty is at an edge of the grid
SAME = 1e-6  # errors this near, as a share of the constant prediction's error, are taken as equal
BLOCK = 2**22  # numbers in float64: 32 MiB
KEPT = 2**25  # numbers in float64: 256 MiB


class PenaltyAtEdge(ValueError):
    """No penalty between the edges of the grid is best, so that none can be chosen."""


class Ridge(NamedTuple):
    """A fitted linear map of standardised features; call `predict`."""

    mean: Tensor  # c
    scale: Tensor  # c
    weight: Tensor  # c d
    offset: Tensor  # d
    penalty: float = 0.0

    def predict(self, features: Tensor) -> Tensor:
        """n c -> n d, float64."""
        return (features.double() - self.mean) / self.scale @ self.weight + self.offset


def fit_ridge(features: Tensor, targets: Tensor, *, penalty: float = PENALTY) -> Ridge:
    """Ridge regression on standardised features, with an unpenalised offset; n c, n d -> c d.

    Features that never vary get weight 0. Solved in float64: (XᵀX + penalty·I) W = Xᵀ(Y − mean Y), or, if there
    are more features than rows, its dual W = Xᵀ (XXᵀ + penalty·I)⁻¹ (Y − mean Y), which is the same.

    Raises ValueError if the numbers of rows differ, or for a value that is not finite.
    """
    _refuse_not_finite(features, "features")
    _refuse_bad_targets(targets, len(features))
    features, targets = features.double(), targets.double()
    mean, spread = features.mean(0), features.std(0, correction=0)
    scale = _scale(mean, spread)
    x, offset = (features - mean) / scale, targets.mean(0)
    gram = x @ x.T if x.shape[1] > len(x) else x.T @ x
    gram.diagonal().add_(penalty)
    if x.shape[1] > len(x):
        return Ridge(mean, scale, x.T @ torch.linalg.solve(gram, targets - offset), offset, penalty)
    return Ridge(mean, scale, torch.linalg.solve(gram, x.T @ (targets - offset)), offset, penalty)


def choose_ridges(
    features: Tensor, targets: Sequence[Tensor], *, penalties: Sequence[float] = PENALTIES
) -> list[Ridge]:
    """One ridge regression per target matrix, each with its own best penalty; n c, [n d, …] -> [c d, …].

    All share one eigendecomposition of the features; see `DecomposedFeatures.choose_ridge` for the choice and errors.

    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> (ridge,) = choose_ridges(x, [x[:, :1] + x[:, 1:2].sin()], penalties=(0.01, 1, 100))
    >>> ridge.penalty, ridge.predict(x).shape
    (1.0, torch.Size([50, 1]))
    """
    checked_penalties(penalties)
    decomposed = DecomposedFeatures(features)
    return [decomposed.choose_ridge(of_one, penalties=penalties) for of_one in targets]


class DecomposedFeatures:
    """Standardised features and their eigendecomposition, from which ridges towards any targets follow cheaply.

    Decomposed is XᵀX, c c, or XXᵀ, n n, if there are more features than rows. Everything is float64. Features are
    standardised in blocks of at most `block` numbers; the features by eigenvector are kept if they have at most `keep`
    numbers, and else computed anew in each pass.

    Raises ValueError for features that are not n c, have fewer than three rows, or hold a value that is not finite.
    """

    def __init__(self, features: Tensor, *, block: int = BLOCK, keep: int = KEPT) -> None:
        if features.ndim != 2 or len(features) < 3 or not features.shape[1]:
            raise ValueError(
                f"features are {tuple(features.shape)}: a probe needs n c, at least three rows of one feature"
            )
        _refuse_not_finite(features, "features")
        self.features, self.block = features, block
        n, c = features.shape
        self.dual = c > n
        self.mean = torch.cat([features[:, part].double().mean(0) for part in self._blocks(c, n)])
        spreads = [
            (features[:, part].double() - self.mean[part]).square().mean(0).sqrt() for part in self._blocks(c, n)
        ]
        self.scale = _scale(self.mean, torch.cat(spreads))
        side = min(n, c)
        gram = torch.zeros(side, side, dtype=torch.float64)
        for part in self._parts():
            x = self._standardised(part)
            gram += x @ x.T if self.dual else x.T @ x
        if self.dual:
            # The rows are centred, so XXᵀ has eigenvalue 0 for the constant vector, which the offset fits exactly.
            # Made the greatest eigenvalue, it comes last and is dropped.
            gram += (2 * gram.trace() + 1) / n
        values, vectors = eigenvectors(gram)
        values, vectors = (values[:-1], vectors[:, :-1]) if self.dual else (values, vectors)
        self.values, self.vectors = values.clamp(min=0), vectors
        self.kept: Tensor | None = None
        if self.dual:
            self.kept = vectors
        elif n * c <= keep:
            self.kept = torch.cat([self._basis(part) for part in self._parts()])

    def choose_ridge(self, targets: Tensor, *, penalties: Sequence[float] = PENALTIES) -> Ridge:
        """The ridge of the penalty with the least leave-one-out error, summed over all columns; n d -> c d.

        If the least error is at an edge of the grid, the grid is widened there by up to `WIDENINGS` decades. A lower
        edge where the error has reached its limit is taken, since less penalty would change nothing.

        Raises:
            PenaltyAtEdge: No penalty does better than a constant prediction, or the best one is still at an edge.
            ValueError: The grid has one point, is not ascending or not positive; the numbers of rows differ; or the
                targets never vary or are not finite.
        """
        grid = checked_penalties(penalties)
        _refuse_bad_targets(targets, len(self.features))
        n = len(targets)
        centred = targets.double() - targets.double().mean(0)
        constant = centred.square().sum().item() * (n / (n - 1)) ** 2  # leave-one-out error of the mean
        if constant <= 1e-24 * targets.double().square().sum().item():
            raise ValueError("the targets never vary over the training rows: there is nothing for a probe to learn")
        errors = self.leave_one_out_errors(targets, grid)
        for _ in range(WIDENINGS):
            best = errors.index(min(errors))
            if best not in (0, len(grid) - 1):
                break
            wider = grid[0] / 10 if best == 0 else grid[-1] * 10
            error = self.leave_one_out_errors(targets, [wider])
            grid, errors = ([wider, *grid], error + errors) if best == 0 else ([*grid, wider], errors + error)
        best = errors.index(min(errors))
        tried = f"of the penalties from {grid[0]:g} to {grid[-1]:g}"
        if errors[best] >= (1 - SAME) * constant:
            raise PenaltyAtEdge(
                f"these features predict the text no better than a constant: {tried}, none has a smaller leave-one-out "
                "error; check that the codes differ between images, or fit the probe on more training images"
            )
        if best == len(grid) - 1:
            raise PenaltyAtEdge(
                f"{tried}, the greatest is best, so the best one lies above: the features are many or noisy beside "
                f"{n} rows; give penalties that reach further up, or fit the probe on more training images"
            )
        if best == 0 and errors[1] - errors[0] > SAME * constant:
            raise PenaltyAtEdge(
                f"{tried}, the least is best, so the best one lies below: the targets follow from small differences "
                "between features; give penalties that reach further down"
            )
        return self.ridge(targets, grid[best])

    def leave_one_out_errors(self, targets: Tensor, penalties: Sequence[float]) -> list[float]:
        """Squared error of each row predicted from all others, summed over rows and columns; one per penalty.

        Exact for a ridge with a refitted offset and the standardisation of all rows: a row's residual is divided by
        1 − its leverage.
        """
        shares = torch.tensor([[penalty] for penalty in penalties], dtype=torch.float64)  # p 1
        offset, projected = self._projected(targets)
        errors = torch.zeros(len(penalties), dtype=torch.float64)
        kept = (shares if self.dual else 1) / (self.values + shares)  # of each eigenvector, in the residual or fit
        for part in self._blocks(len(targets), max(targets.shape[1], len(self.values))):
            basis, centred = self._basis(part), targets[part].double() - offset
            outside = basis.square() @ kept.T  # 1 − leverage, r p
            if not self.dual:
                outside = 1 - 1 / len(targets) - outside
            outside = outside.clamp(min=1e-12)
            for i, share in enumerate(kept):
                fitted = basis @ (share[:, None] * projected)
                residual = fitted if self.dual else centred - fitted
                errors[i] += (residual.square().sum(1) / outside[:, i].square()).sum()
        return errors.tolist()

    def ridge(self, targets: Tensor, penalty: float) -> Ridge:
        """The ridge of one penalty, equal to `fit_ridge`; n d -> c d."""
        offset, projected = self._projected(targets)
        weight = self.vectors @ (projected / (self.values + penalty)[:, None])
        if self.dual:
            weight = torch.cat([self._standardised(part).T @ weight for part in self._parts()])
        return Ridge(self.mean, self.scale, weight, offset, penalty)

    def _projected(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The targets' mean, d, and the centred targets by eigenvector, m d."""
        offset = targets.double().mean(0)
        projected = torch.zeros(len(self.values), targets.shape[1], dtype=torch.float64)
        for part in self._blocks(len(targets), max(targets.shape[1], len(self.values))):
            projected += self._basis(part).T @ (targets[part].double() - offset)
        return offset, projected

    def _basis(self, part: slice) -> Tensor:
        """A block of rows by eigenvector, r m: entries of the eigenvectors (dual), or features along them."""
        return self._standardised(part) @ self.vectors if self.kept is None else self.kept[part]

    def _parts(self) -> Iterator[slice]:
        """Blocks of rows, or of features if there are more of them."""
        n, c = self.features.shape
        return self._blocks(c, n) if self.dual else self._blocks(n, c)

    def _blocks(self, length: int, width: int) -> Iterator[slice]:
        """Slices of `length` rows of `width` numbers, of at most `block` numbers each."""
        step = max(1, self.block // max(1, width))
        return (slice(start, start + step) for start in range(0, length, step))

    def _standardised(self, part: slice) -> Tensor:
        """A block of standardised features in float64: of rows, r c, or of features, n r, if there are more of them."""
        if self.dual:
            return (self.features[:, part].double() - self.mean[part]) / self.scale[part]
        return (self.features[part].double() - self.mean) / self.scale


def checked_penalties(penalties: Sequence[float]) -> list[float]:
    """A grid of penalties as floats. Raises ValueError unless it has two points or more, positive and ascending.

    >>> checked_penalties([300])
    Traceback (most recent call last):
    ValueError: penalties (300.0,) are a grid of 1: give at least two, so that one can be chosen, such as (1, 10, 100)
    """
    grid = [float(penalty) for penalty in penalties]
    if len(grid) < 2:
        raise ValueError(
            f"penalties {tuple(grid)} are a grid of {len(grid)}: give at least two, so that one can be chosen, such as "
            "(1, 10, 100)"
        )
    if not all(0 < penalty < float("inf") for penalty in grid):
        raise ValueError(f"penalties {tuple(grid)} must all be finite and above 0")
    if any(low >= high for low, high in pairwise(grid)):
        raise ValueError(f"penalties {tuple(grid)} must be ascending, each once: give {tuple(sorted(set(grid)))}")
    return grid


def places_of(quantized: Tensor, *, most: int = 8) -> Tensor:
    """Codes of a grid, averaged to at most most × most places; b c h w -> b c min(h, most) min(w, most).

    Codes in a sequence (h or w is 1) are averaged to at most most² places, so that they keep as many as a grid does.

    >>> places_of(torch.rand(2, 3, 16, 4)).shape, places_of(torch.rand(2, 3, 1, 32)).shape
    (torch.Size([2, 3, 8, 4]), torch.Size([2, 3, 1, 32]))
    """
    if quantized.ndim != 4 or most < 1:
        raise ValueError(f"codes are {tuple(quantized.shape)} and most is {most}: give b c h w, and at least 1")
    h, w = quantized.shape[2:]
    most = most if min(h, w) > 1 else most**2
    return F.adaptive_avg_pool2d(quantized, (min(h, most), min(w, most)))


def _scale(mean: Tensor, spread: Tensor) -> Tensor:
    """What centred features are divided by; infinity for a feature that varies by no more than rounding."""
    return torch.where(spread > 1e-12 * mean.abs().clamp(min=1), spread, torch.inf)


def _refuse_bad_targets(targets: Tensor, rows: int) -> None:
    if len(targets) != rows:
        raise ValueError(f"{rows} rows of features for {len(targets)} of targets: give one row per image to both")
    _refuse_not_finite(targets, "targets")


def _refuse_not_finite(values: Tensor, name: str) -> None:
    if not values.isfinite().all():
        raise ValueError(f"the probe's {name} hold NaN or infinity: leave out the rows without a value")
