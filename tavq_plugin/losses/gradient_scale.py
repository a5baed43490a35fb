"""Scale the gradient that a loss sends to the tokenizer, but not that of the loss's own heads."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from tavq_plugin.types import Codes


def scale_gradient(codes: Codes, weight: float) -> Codes:
    """The same codes, whose gradient is multiplied by `weight`; at 0 they have none."""

    def scaled(quantized: Tensor) -> Tensor:
        if weight == 0:
            return quantized.detach()
        return quantized.detach() + weight * (quantized - quantized.detach())

    return Codes(tuple(replace(level, quantized=scaled(level.quantized)) for level in codes.levels))


def half_cosine(progress: float) -> float:
    """A factor that falls from 1 to 0 along half a cosine while `progress` goes from 0 to 1.

    >>> half_cosine(0.0), half_cosine(1.0)
    (1.0, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * progress))
