"""Settings, frozen and checked at birth; the unit of each stands beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransportSettings:
    """How codes and text are matched; the arguments of `tavq_plugin.align.solve`."""

    solver: str = "newton"  # "newton" | "sinkhorn" | "emd"
    cost: str = "sqeuclidean"  # "sqeuclidean" | "dot"
    epsilon: float = 0.02  # entropic blur, as a share of each problem's own cost scale (or absolute)
    epsilon_mode: str = "relative"  # "relative" | "absolute"
    schedule: str | None = None  # "adaptive" | "fixed"; None: adaptive on a CPU, fixed elsewhere
    # L1 marginal error at which a problem stops: its gradient is as exact, far below batch noise
    tolerance: float = 1e-2
    max_passes: int = 100  # over the codes at the target blur, at most

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}")
        if self.max_passes < 1:
            raise ValueError(f"max_passes must be at least 1, got {self.max_passes}")


@dataclass(frozen=True)
class Training:
    """One run of the demo's trainer."""

    steps: int = 500  # optimizer steps
    batch_size: int = 16  # images
    learning_rate: float = 1e-3  # Adam's peak, after `warmup`; then half a cosine down to 0
    # Adam's memory of squared gradients, about 1 / (1 - beta2) steps: what the alignment leaves there at the start
    # must be gone by the end, or it shrinks the steps of the pixels
    beta2: float = 0.99
    warmup: int = 20  # steps of linear rise
    weight: float = 0.3  # λ of the alignment at the start; 0 = no alignment
    weight_end: float = 0.0  # λ at the end, reached along half a cosine: the last steps serve the pixels
    head_rate: float = 2.0  # learning rate of the alignment's heads, in units of learning_rate
    level_weight: float = 1.0  # of the added levels' codebook and commitment loss
    settle_share: float = 0.2  # of the run, from its start, in which the host learns without quantizing
    revive_every: int = 10  # steps after which codes that the host's level hardly used move onto latents; 0 = never
    revive_below: float = 0.1  # what is hardly: below this share of the mean use
    revive_share: float = 0.8  # of the run, from its start, in which they do
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight", "weight_end", "level_weight", "revive_every", "revive_below", "revive_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.settle_share < 1:
            raise ValueError(f"settle_share must be 0 or more and below 1, got {self.settle_share}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be 0 or more and below 1, got {self.beta2}")
        for name in ("learning_rate", "head_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def settled(self) -> int:
        """Steps before the first with codes."""
        return int(self.settle_share * self.steps)
