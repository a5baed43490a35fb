"""Fréchet and kernel distances between the features of images and of their reconstructions, by torchmetrics."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tavq_plugin.networks.weights import INCEPTION

SUBSETS = 20  # of the kernel distance


class KernelDistance(NamedTuple):
    """A kernel distance over random subsets of the images."""

    mean: float
    spread: float  # standard deviation over the subsets, which overlap: not the error of the mean


class _Identity(nn.Module):
    """Stands in for torchmetrics' feature network, because its input already consists of features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, ours: Tensor) -> float:
    """Fréchet distance between two sets of features; n c, m c. Few images bias it upwards: compare equal n only.

    Raises ValueError for fewer than two images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _require_two_each(real, ours)
    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(ours.double(), real=False)
    return metric.compute().item()


def kernel_distance(real: Tensor, ours: Tensor) -> KernelDistance:
    """Kernel distance (cubic polynomial, unbiased) over 20 random subsets of half the images, at most 1000; n c, m c.

    The caller's random state does not change. Raises ValueError for fewer than four images.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(ours)) // 2
    if size < 2:
        raise ValueError(
            f"{len(real)} and {len(ours)} images: a kernel distance needs four each; give more held-out images"
        )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # it warns that it keeps all features in memory
        torch.manual_seed(0)
        metric = KernelInceptionDistance(_Identity(real.shape[1]), subsets=SUBSETS, subset_size=min(1000, size))
        metric.update(real.double(), real=True)
        metric.update(ours.double(), real=False)
        return KernelDistance(*(value.item() for value in metric.compute()))


class Inception(nn.Module):
    """FID's Inception of 2015 with weights from a folder, inputs resized as TensorFlow does; n 3 h w uint8 -> n 2048.

    Raises FileNotFoundError or ValueError as `Weights.path` does, and ImportError without torch-fidelity.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        path = INCEPTION.path(folder)
        INCEPTION.read(folder)  # refuses a file with more than tensors in it, which torch-fidelity would run
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path), antialias=False)
        except ModuleNotFoundError as error:
            raise ImportError(f'FID needs torch-fidelity ({error}): pip install "tavq-plugin[eval]"') from error

    def forward(self, images: Tensor) -> Tensor:
        """Features, computed in batches of 50."""
        return torch.cat([self.net(part) for part in images.split(50)])


def _require_two_each(real: Tensor, ours: Tensor) -> None:
    if min(len(real), len(ours)) < 2:
        raise ValueError(
            f"{len(real)} and {len(ours)} images: a Fréchet distance needs two each; give more held-out images"
        )
