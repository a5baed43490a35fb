"""A small convolutional network with an answer for each pixel and features of the whole image."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.pixels import to_float
from tavq_plugin.tasks.fit_model import FitSettings

WORKING_SIDE = 32  # larger images are read at this side, or up to twice as large
WIDTHS = (32, 48, 64)  # channels at that side, at half of it, and at a quarter
FEATURES = WIDTHS[-1]


class PixelAnswers(NamedTuple):
    """What the network says of b images."""

    pixels: Tensor  #: b k r r, logits
    features: Tensor  #: b c, the deepest channels, averaged over the image


class PixelNet(nn.Module):
    """Three depths down and up again, with skips (a U-Net); b 3 r r uint8 -> b k r r and b c."""

    def __init__(self, resolution: int, answers: int) -> None:
        super().__init__()
        stride = max(1, resolution // WORKING_SIDE)
        first, second, third = WIDTHS
        self.stem = _conv(3, first, stride)
        self.fine = _conv(first, first)
        self.middle = nn.Sequential(_conv(first, second, 2), _conv(second, second))
        self.deep = nn.Sequential(_conv(second, third, 2), _conv(third, third), _conv(third, third))
        self.up_middle = _conv(third + second, second)
        self.up_fine = _conv(second + first, first)
        self.head = nn.Conv2d(first, answers, 1)

    def forward(self, images: Tensor) -> PixelAnswers:
        """b 3 r r uint8 -> logits of each pixel, and features."""
        fine = self.fine(self.stem(to_float(images.to(self.head.weight.device))))
        middle = self.middle(fine)
        deep = self.deep(middle)
        x = self.up_middle(torch.cat([_resized(deep, middle), middle], 1))
        x = self.head(self.up_fine(torch.cat([_resized(x, fine), fine], 1)))
        pixels = F.interpolate(x, images.shape[-2:], mode="bilinear") if x.shape[-2:] != images.shape[-2:] else x
        return PixelAnswers(pixels, deep.mean((2, 3)))


def judge_settings(steps: int, *, quick: bool) -> FitSettings:
    """How a network that judges generated images is trained."""
    if quick:
        return FitSettings(steps=40, batch_size=16, warmup=10, learning_rate=4e-3)
    return FitSettings(steps=steps, learning_rate=4e-3)


def _conv(given: int, made: int, stride: int = 1) -> nn.Sequential:
    kernel = max(3, stride + stride % 2 + 1) if stride > 2 else 3
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(made), nn.ReLU())


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear")
