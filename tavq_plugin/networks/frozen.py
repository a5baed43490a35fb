"""Frozen classifiers that judge images: features for Fréchet and kernel distances, classes for their agreement.

They are MobileNetV2 and SqueezeNet, so metrics carry the network's name: FD-MobileNet is not FID.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.networks.weights import MOBILENET, SQUEEZENET


class JudgeOutput(NamedTuple):
    """Features and classes of images."""

    features: Tensor  # n c, pooled over the grid
    classes: Tensor  # n, int64, the most likely class


class Judge(nn.Module):
    """A frozen classifier, its input size and its normalisation; uint8 images in, features and classes out."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, head: nn.Module, size: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.body, self.head, self.size = body, head, size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Judge:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def forward(self, images: Tensor) -> JudgeOutput:
        """Resize to the network's size (bilinear, antialiased) and judge, in batches; n 3 h w uint8 -> n c, n."""
        features, classes = [], []
        for part in images.split(50):
            x = F.interpolate(part.float() / 255, (self.size, self.size), mode="bilinear", antialias=True)
            maps = self.body((x - self.mean) / self.std)
            features.append(maps.mean((2, 3)))
            classes.append(self.head(maps).argmax(1))
        return JudgeOutput(torch.cat(features), torch.cat(classes))


def mobilenet(folder: Path | None) -> Judge:
    """MobileNetV2 with weights from a folder; features of width 1280. Raises as `WeightFile.path` does."""
    return mobilenet_from_state(MOBILENET.read(folder))


def mobilenet_from_state(state: Mapping[str, Tensor]) -> Judge:
    """MobileNetV2 from a state dict with batch norm folded into the convolutions, `convs.0` … `convs.52` in order.

    It is torchvision's network, in which norms only add the biases and strided convolutions pad as TensorFlow does.
    """
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2(num_classes=len(state["convs.52.bias"]))
    convs = [module for module in net.features.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in net.features.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
            conv.weight.copy_(state[f"convs.{i}.weight"])
            norm.bias.copy_(state[f"convs.{i}.bias"])
            norm.running_var = torch.full_like(norm.bias, 1 - norm.eps)  # mean 0, weight 1: the norm only adds its bias
        net.classifier[1].weight.copy_(state["convs.52.weight"].flatten(1))
        net.classifier[1].bias.copy_(state["convs.52.bias"])
    for name, conv in list(net.features.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
            conv.padding = (0, 0)
            net.features.set_submodule(name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.classifier[1])
    return Judge(net.features, head, 224, [128 / 255] * 3, [128 / 255] * 3)


def squeezenet(folder: Path | None) -> Judge:
    """SqueezeNet 1.0 with weights from a folder; features of width 512. Raises as `WeightFile.path` does."""
    from torchvision.models import squeezenet1_0

    net = squeezenet1_0()
    net.load_state_dict(SQUEEZENET.read(folder))
    net.classifier[1].padding = (1, 1)  # as in the network that these weights come from
    head = nn.Sequential(net.classifier[1], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Judge(net.features, head, 227, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
