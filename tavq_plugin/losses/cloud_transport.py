"""Transport between the codes and the text of all levels and images, in one batch of problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.ot.solve import Transport, TransportSettings, solve


class CloudTransport(NamedTuple):
    """A transport of products of points; scale · (its figure) + shift is the figure in the asked cost."""

    result: Transport  # over (l b)
    scale: float
    shift: Tensor  # (l b), 0 without text

    @property
    def value(self) -> Tensor:
        """F_ε, differentiable; (l b)."""
        return self.scale * self.result.value + self.shift

    @property
    def cost(self) -> Tensor:
        """⟨P, C⟩ of the plan, without gradient; (l b)."""
        return self.scale * self.result.transport_cost + self.shift


def transport_clouds(codes: PointClouds, text: PointClouds, settings: TransportSettings) -> CloudTransport:
    """The transport of every image's codes onto its text; l b n d, l b m d -> over (l b).

    All points have unit length, so that |x − y|² = 2 − 2 x·y, and the solver needs the products only. A text vector of
    0 has no direction and stays 0: its cost is 1.
    """
    matched = (codes.nonempty & text.nonempty).flatten()
    options, scale, shift = vars(settings), 1.0, 0.0 * matched
    if settings.cost == "sqeuclidean":
        scale, shift = 2.0, 2.0 * matched
        options = options | {"cost": "dot", "unit_cost": -0.5 * (text.points == 0).all(-1).flatten(0, 1)}
        if settings.epsilon_mode == "absolute":
            options["epsilon"] = settings.epsilon / scale
    return CloudTransport(solve_clouds(codes, text, options), scale, shift)


def solve_clouds(codes: PointClouds, text: PointClouds, options: Mapping[str, Any]) -> Transport:
    """`solve` for the problems of all levels in one batch; l b n d, l b m d -> Transport over (l b)."""
    x, a, y, b = (part.flatten(0, 1) for part in (*codes, *text))
    return solve(x, y, x_mask=a != 0, x_weight=a, y_mask=b != 0, y_weight=b, **options)
