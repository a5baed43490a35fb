"""The settings of the alignment, one set of defaults for `attach` and for the trainer's method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tavq_plugin.losses.gradient_scale import half_cosine
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES

# ρ of the taps and of the latent and codebook by default. The decoder reads the latter alone: there a larger ρ costs
# PSNR, and it is where the stored codes gain (docs/findings.md)
BALANCE = (0.25, 0.25, 1.0)
WEIGHT = 0.2  # λ of a weighted sum by default; 0.3 costs half again as much PSNR, for half a point of word mAP
# The contrast tells images apart. With a balance it turns the gradient and does not enlarge it: from .1 to 1, word mAP
# rose by half a point
CONTRAST = 1.0
SUM_CONTRAST = 0.1  # in a weighted sum the gradient grows with it
HEADS_RATE = 2.0  # learning rate of the heads by default, in units of the optimizer's

Balance = float | Sequence[float] | Literal["auto"] | None


@dataclass(frozen=True)
class AlignmentSettings:
    """How the alignment is made and how it reaches the host; the heads always learn from it in full.

    With `balance`, the gradient at each tap, the latent and the codebook is ρ times as large as the host's own there,
    without the part that opposes it. Without, the gradient that reaches the host is multiplied by λ. λ and ρ fall along
    half a cosine over the run; with `rise` they first rise from 0. By default the gradients are balanced; a `weight` or
    balance=None makes a weighted sum.

    `weight`, `balance` and `contrast` are resolved when the settings are made: with a balance `weight` is 0, and
    without one it is a number. The settings from `levels` on are those of `TextAlignment`, except `heads_rate`.

    Raises:
        ValueError: A number is out of its range, `balance` has not one value or one per level, or a weight is given
            with a balance.

    >>> AlignmentSettings().balance, AlignmentSettings(weight=0.3).balance, AlignmentSettings(balance=None).weight
    ((0.25, 0.25, 1.0), None, 0.2)
    """

    weight: float | None = None  #: λ at the start. None: `WEIGHT` without a balance
    weight_end: float = 0.0  #: λ at the end, at most `weight`
    #: ρ at the start, it falls to 0; one value, or one per level, fine → coarse: a tap has its level's, the latent and
    #: the codebook have the last level's. None: a weighted sum, by λ. "auto": `BALANCE`, unless a weight is given
    balance: Balance = "auto"
    #: share of the run over which λ and ρ rise from 0, beside their fall: heads that are new know nothing of the text
    #: yet, and what they send into a trained host is noise. 0: λ and ρ are greatest at the first step
    rise: float = 0.0
    levels: Sequence[str] = GRANULARITIES  #: the text units that each level is aligned with, fine → coarse
    level_weights: Sequence[float] = (2.5, 2.5, 0.35)  #: levels 1-2 cost less, as the decoder reads only level 3
    projection: str = "mlp"
    hidden: int | None = None
    distribution: str = "all"
    samples: int = 128
    transport: TransportSettings = field(default_factory=TransportSettings)
    #: weight of the contrast over the batch, beside the transport. None: `CONTRAST` with a balance, else `SUM_CONTRAST`
    contrast: float | None = None
    contrast_on: str = "pooled"
    temperature: float = 0.1
    heads_rate: float = HEADS_RATE  #: learning rate of the heads, in units of the optimizer's first group

    def __post_init__(self) -> None:
        for name in ("weight", "weight_end"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more and finite, got {value}")
        if not 0 <= self.rise < 1:  # NaN is refused too
            raise ValueError(f"rise must be a share of the run, 0 or more and below 1, got {self.rise}")
        if not (math.isfinite(self.heads_rate) and self.heads_rate > 0):
            raise ValueError(f"heads_rate must be above 0 and finite, got {self.heads_rate}")
        balance = _resolved_balance(self.balance, self.weight, len(self.levels))
        for name in ("weight", "weight_end") if balance is not None else ():
            if getattr(self, name):
                raise ValueError(
                    f"got {name}={getattr(self, name)} and balance={balance}: give balance=None for a weighted "
                    f"sum, or leave {name} out for gradients in a fixed ratio"
                )
        weight = self.weight if self.weight is not None else WEIGHT if balance is None else 0.0
        contrast = self.contrast if self.contrast is not None else SUM_CONTRAST if balance is None else CONTRAST
        object.__setattr__(self, "contrast", contrast)
        object.__setattr__(self, "balance", balance)
        object.__setattr__(self, "weight", weight)

    @property
    def is_balanced(self) -> bool:
        """Whether gradients are balanced; if not, the losses are summed by weight."""
        return self.balance is not None

    def weight_at(self, progress: float) -> float:
        """λ at a share of the run, 0 to 1; always 0 if `weight` is 0."""
        start = self.weight or 0.0
        end = min(start, self.weight_end)
        return self._risen(progress) * (end + (start - end) * half_cosine(progress))

    def balance_at(self, progress: float) -> tuple[float, ...]:
        """ρ of each level at a share of the run, 0 to 1; all 0 without a balance."""
        each = _as_tuple(self.balance or 0.0)
        share = self._risen(progress) * half_cosine(progress)
        return tuple(ratio * share for ratio in (each if each[1:] else each * len(self.levels)))

    def _risen(self, progress: float) -> float:
        """How far λ and ρ have risen at a share of the run; 1 from `rise` on."""
        return min(1.0, progress / self.rise) if self.rise else 1.0

    def head_settings(self) -> dict[str, Any]:
        """The arguments of `TextAlignment`."""
        own = ("weight", "weight_end", "balance", "rise", "heads_rate")
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in own}

    def reach(self) -> str:
        """How the alignment reaches the host, in two words: "balance 1" or "weight 0.2"."""
        if self.balance is None:
            return f"weight {self.weight:g}"
        return f"balance {', '.join(f'{ratio:g}' for ratio in _as_tuple(self.balance))}"

    def __str__(self) -> str:
        levels = ", ".join(f"{weight:g}" for weight in self.level_weights)
        contrast = f"contrast {self.contrast:g} on {self.contrast_on}" if self.contrast else "no contrast"
        solver = f"{self.transport.solver}, ε {self.transport.epsilon:g}"
        return f"{self.reach()}; level weights {levels}; {contrast}; {solver}"


def _resolved_balance(balance: Balance, weight: float | None, levels: int) -> float | tuple[float, ...] | None:
    """ρ, or one per level, or None for a weighted sum; ValueError if it is none of these."""
    if isinstance(balance, str) and balance == "auto":
        return (*(BALANCE[0] for _ in range(levels - 1)), BALANCE[-1]) if weight is None else None
    if balance is None:
        return None
    if isinstance(balance, Sequence) and not isinstance(balance, str):
        if len(balance) != levels:
            raise ValueError(f"balance has {len(balance)} entries for {levels} levels: give one value, or one each")
        return tuple(_checked_ratio(ratio, balance) for ratio in balance)
    return _checked_ratio(balance, balance)


def _checked_ratio(ratio: Any, given: Any) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not (math.isfinite(ratio) and ratio >= 0):
        raise ValueError(
            f'balance must be a number, 0 or more and finite, or one per level, or "auto", or None for a weighted '
            f"sum; got {given!r}"
        )
    return float(ratio)


def _as_tuple(balance: Any) -> tuple[float, ...]:
    return balance if isinstance(balance, tuple) else (balance,)
