"""Pixels as 8-bit integers and as floats in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """8-bit pixels to [-1, 1]; any shape.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] to 8 bits, as an image file stores them: clamped, then rounded; any shape."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
