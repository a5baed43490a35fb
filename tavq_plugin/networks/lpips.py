"""LPIPS from a local file of VGG16; nothing is fetched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tavq_plugin.networks.weights import VGG16
from tavq_plugin.pixels import to_uint8


class Lpips(nn.Module):
    """LPIPS with VGG16 (torchmetrics' linear weights) of each image pair in [-1, 1]; b 3 h w, b 3 h w -> b.

    Raises as `Weights.path` does.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        path = VGG16.path(folder)
        VGG16.read(folder)  # tensors alone: torch.hub would run what else is in it
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with _hub_of(path):
            self.net = LearnedPerceptualImagePatchSimilarity(net_type="vgg", reduction="none").net

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Both sides are clamped and rounded to 8 bit first."""
        ours, truth = (to_uint8(side).float() / 127.5 - 1 for side in (reconstruction, images))
        return self.net(ours, truth).reshape(len(images))


@contextmanager
def _hub_of(file: Path) -> Iterator[None]:
    """torch.hub's folder is one that holds this file alone."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        os.symlink(file.resolve(), Path(folder) / "checkpoints" / file.name)
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
