"""A control: TA-VQ with the uniform plan, which matches nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.losses.diagnostics import mean_over_images
from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.tavq import TAVQ


def independent_cost(x: Tensor, a: Tensor, y: Tensor, b: Tensor, *, cost: str = "sqeuclidean") -> Tensor:
    """⟨a bᵀ, C⟩, the cost of sending every code to all units alike; b n d, b n, b m d, b m -> b. Masses sum to 1 or 0.

    >>> x, y, half = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[1.0]]]), torch.full((1, 2), 0.5)
    >>> independent_cost(x, half, y, torch.ones(1, 1))
    tensor([1.])
    """
    inner = (torch.einsum("b n d, b n -> b d", x, a) * torch.einsum("b m d, b m -> b d", y, b)).sum(1)
    if cost == "dot":
        return -inner
    own = torch.linalg.vecdot(a, x.square().sum(2)) * b.sum(1)
    return own + torch.linalg.vecdot(b, y.square().sum(2)) * a.sum(1) - 2 * inner


class UniformPlan(TextAlignment):
    """TextAlignment with the cost of the uniform plan, ⟨a bᵀ, C⟩, instead of the least ⟨P, C⟩ + ε KL(P | a bᵀ)."""

    def transport_losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's cost over the images with text; l b n d, l b m d -> l."""
        flat = [part.flatten(0, 1) for part in (*codes, *text)]
        return mean_over_images(independent_cost(*flat, cost=self.transport.cost), text.nonempty)


class TAVQUniformPlan(TAVQ):
    """Our control: TA-VQ's heads, units and weights, with the independent coupling a bᵀ as the plan.

    What TA-VQ gains over it comes from matching codes with units. What both gain comes from pulling all codes of an
    image to the mean of its text, and from the contrast. The settings are those of `TAVQ`; those of the solver have no
    effect.
    """

    name = "tavq-uniform-plan"
    alignment = UniformPlan
