"""Settings, frozen and checked at birth; the unit of each stands beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransportSettings:
    """How codes and text are matched; the arguments of `tavq_plugin.losses.solve`."""

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
