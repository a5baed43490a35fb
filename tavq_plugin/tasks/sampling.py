"""How tokens are drawn: how many per step, which places first, temperature, top-k, top-p, and guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ORDERS = ("halton", "confidence")


@dataclass(frozen=True)
class SamplingSettings:
    """How a masked model fills its places. Raises ValueError for a number out of its range."""

    steps: int = 12  #: passes of the model
    order: str = "halton"  #: "halton": a fixed order that spreads over the image; "confidence": the surest places first
    temperature: float = 1.0  #: of the tokens; 0 takes the likeliest
    top_k: int = 0  #: draw from the k likeliest tokens only; 0: from all
    top_p: float = 1.0  #: draw from the likeliest tokens whose probabilities reach this sum; 1: from all
    guidance: float = 1.0  #: 1: as conditioned; above 1, farther from the unconditional prediction; 0: unconditional
    order_noise: float = 4.5  #: Gumbel noise on the confidence at the first step, falling to 0; for "confidence" alone
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r}: give one of {', '.join(ORDERS)}")
        if not self.steps >= 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        for name in ("temperature", "top_k", "guidance", "order_noise"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def filled_after(holes: Tensor, steps: int) -> Tensor:
    """How many places are filled after each step, by half a cosine; b int64 -> steps b int64.

    Few places are filled at first, when little is known, and many at the end; but at least one at each step, until
    none is left.

    >>> filled_after(torch.tensor([16, 3]), 4).T.tolist()
    [[1, 5, 10, 16], [1, 2, 3, 3]]
    """
    step = torch.arange(1, steps + 1, device=holes.device)[:, None]
    share = 1 - torch.cos(step.double() / steps * math.pi / 2)
    return torch.maximum((share * holes).round().long(), torch.minimum(step, holes))


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: unconditional + scale · (conditional − unconditional), on logits of one shape.

    >>> guided(torch.tensor([2.0]), torch.tensor([1.0]), 3.0)
    tensor([4.])
    """
    return unconditional + scale * (conditional - unconditional)


def draw_tokens(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> Tensor:
    """One token per row; r v -> r int64. A token with logit -inf is never drawn."""
    if settings.temperature == 0:
        return logits.argmax(1)
    # Gumbel noise on the logits: the greatest sum is a draw from the softmax, and -inf stays -inf
    return (narrowed(logits, settings) + gumbel(logits.shape, generator)).argmax(1)


def narrowed(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits after temperature, top-k and top-p, with -inf for every token that is left out; r v -> r v."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList()
    if settings.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(float(settings.top_p)))
    return warpers(torch.empty(0, dtype=torch.long), logits.float())  # type: ignore[arg-type]


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise on the generator's device; finite."""
    noise = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    return -noise.clamp(min=1e-30).log()
