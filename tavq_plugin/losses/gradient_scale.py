"""A loss on the codes reaches the tokenizer by a weight, and its own heads in full."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from tavq_plugin.types import Codes


def scale_gradient(codes: Codes, weight: float) -> Codes:
    """The same codes, with `weight` times the gradient; with none at 0."""

    def scaled(quantized: Tensor) -> Tensor:
        if weight == 0:
            return quantized.detach()
        return quantized.detach() + weight * (quantized - quantized.detach())

    return Codes(tuple(replace(level, quantized=scaled(level.quantized)) for level in codes.levels))


def half_cosine(done: float) -> float:
    """From 1 at 0 to 0 at 1.

    >>> half_cosine(0.0), half_cosine(1.0)
    (1.0, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * done))
