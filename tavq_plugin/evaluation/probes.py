"""The linear probe through which quantized codes are evaluated: a ridge regression, the same for every run.

A projection that was trained with the loss flatters its own method. So the probe is fitted after training, on the run's
codes of the training images, and scored on held-out images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PENALTY = 300.0  # ridge penalty, on standardised features


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
    """Ridge regression on standardised features, with an unpenalised offset; n c, n d -> c d.

    Features that never vary get weight 0. Solved in float64: (XᵀX + penalty·I) W = Xᵀ(Y − mean Y), or, if there
    are more features than rows, its dual W = Xᵀ (XXᵀ + penalty·I)⁻¹ (Y − mean Y), which is the same.
    """
    if len(features) != len(targets):
        raise ValueError(
            f"{len(features)} rows of features for {len(targets)} of targets: give one row per image to both"
        )
    features, targets = features.double(), targets.double()
    mean, spread = features.mean(0), features.std(0, correction=0)
    scale = torch.where(spread > 1e-12, spread, torch.inf)
    x, offset = (features - mean) / scale, targets.mean(0)
    gram = x @ x.T if x.shape[1] > len(x) else x.T @ x
    gram.diagonal().add_(penalty)
    if x.shape[1] > len(x):
        return Ridge(mean, scale, x.T @ torch.linalg.solve(gram, targets - offset), offset)
    return Ridge(mean, scale, torch.linalg.solve(gram, x.T @ (targets - offset)), offset)
