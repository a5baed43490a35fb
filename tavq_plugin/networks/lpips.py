"""LPIPS by torchmetrics, with the backbone read from torchvision's own weight file; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.networks.weights import VGG16, read_state_dict
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.side_effects import isolated_random_state

BACKBONES = {"vgg": VGG16.file, "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def load_lpips(path: Path, backbone: Any = "vgg") -> nn.Module:
    """LPIPS with its backbone's weights from torchvision's file; b 3 h w, b 3 h w in [-1, 1] -> b 1 1 1.

    The caller checks the file's hash. The linear layers are torchmetrics' own. Raises ImportError without torchmetrics
    and ValueError for a file that does not hold the backbone.
    """
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError as error:
        raise ImportError(f'LPIPS needs torchmetrics ({error}): pip install "tavq-plugin[eval]"') from error
    state = read_state_dict(path)
    with isolated_random_state(torch.device("cpu")):
        network = _LPIPS(net=backbone, pnet_rand=True)  # drawn at random, so that torchmetrics downloads nothing
    for name, parameter in network.net.named_parameters():
        key = f"features.{name.split('.', 2 if backbone == 'squeeze' else 1)[-1]}"
        if key not in state or state[key].shape != parameter.shape:
            raise ValueError(f"{path} does not hold {key} of {backbone}: give torchvision's {BACKBONES[backbone]}")
        parameter.data.copy_(state[key])
    return network


class Lpips(nn.Module):
    """LPIPS with VGG16 as a metric of image pairs in [-1, 1]; b 3 h w, b 3 h w -> b.

    Raises as `WeightFile.path` and `load_lpips` do.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.net = load_lpips(VGG16.path(folder))

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """The distance of each pair, both sides first clamped and rounded to 8 bits."""
        ours, truth = (to_float(to_uint8(side)) for side in (reconstruction, images))
        return self.net(ours, truth).reshape(len(images))
