"""The settings of the alignment, one set of defaults for `attach` and for the trainer's method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tavq_plugin.losses.gradient_scale import half_cosine
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES


@dataclass(frozen=True)
class AlignmentSettings:
    """How the alignment is made and how it reaches the host; the heads always learn from it in full.

    Without `balance`, the gradient that reaches the host is multiplied by λ. With it, the gradient at each tap, the
    latent and the codebook is ρ times as large as the host's own there, without the part that opposes it. λ and ρ fall
    along half a cosine over the run. The other settings are those of `TextAlignment`.

    Raises:
        ValueError: A weight is negative, or `balance` is negative or not finite.
    """

    weight: float = 0.2  # λ at the start; 0.3 costs half again as much PSNR, for half a point of word mAP
    weight_end: float = 0.0  # λ at the end, at most `weight`
    balance: float | None = None  # ρ at the start, it falls to 0; None: a weighted sum, by λ
    levels: Sequence[str] = GRANULARITIES  # the text units that each level is aligned with, fine → coarse
    level_weights: Sequence[float] = (2.5, 2.5, 0.35)  # levels 1-2 cost less, as the decoder reads only level 3
    projection: str = "mlp"
    hidden: int | None = None
    distribution: str = "all"
    samples: int = 128
    transport: TransportSettings = field(default_factory=TransportSettings)
    contrast: float = 0.1  # tells images apart and costs less PSNR than more transport would
    contrast_on: str = "pooled"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name in ("weight", "weight_end"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.balance is not None and not (math.isfinite(self.balance) and self.balance >= 0):
            raise ValueError(f"balance must be a number, 0 or more, or None for a weighted sum, got {self.balance}")

    def weight_at(self, progress: float) -> float:
        """λ at a share of the run, 0 to 1; always 0 if `weight` is 0."""
        end = min(self.weight, self.weight_end)
        return end + (self.weight - end) * half_cosine(progress)

    def balance_at(self, progress: float) -> float:
        """ρ at a share of the run, 0 to 1; 0 without a balance."""
        return (self.balance or 0.0) * half_cosine(progress)

    def head_settings(self) -> dict[str, Any]:
        """The arguments of `TextAlignment`."""
        own = ("weight", "weight_end", "balance")
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in own}

    def __str__(self) -> str:
        host = f"weight {self.weight:g}" if self.balance is None else f"balance {self.balance:g}"
        levels = ", ".join(f"{weight:g}" for weight in self.level_weights)
        contrast = f"contrast {self.contrast:g} on {self.contrast_on}" if self.contrast else "no contrast"
        return f"{host}; level weights {levels}; {contrast}; {self.transport.solver}, ε {self.transport.epsilon:g}"
