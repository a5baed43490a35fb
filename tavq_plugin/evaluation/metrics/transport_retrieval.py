"""Retrieval by transport: the score of an image and a text comes from the transport cost of its codes to its units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.probes.ridge import Ridge
from tavq_plugin.losses.unique_codes import merge_repeated_codes
from tavq_plugin.ot.solve import solve
from tavq_plugin.types import Units


def transport_scores(
    quantized: Tensor, indices: Tensor, units: Units, probe: Ridge, *, solver: str = "newton"
) -> Tensor:
    """How near each image is to each text, greater is nearer; s c h w, s h w, s m d -> s s, images first.

    Every code goes through the fitted probe (without its offset) and is normalised. The cost is squared Euclidean, with
    an epsilon of .02 of each problem's scale; solver "emd" is exact (POT). Each image's and each text's mean cost is
    subtracted, as centring does for pooled vectors, so that a text that is near every image gains nothing.
    """
    merged = merge_repeated_codes(quantized, indices)
    points = F.normalize(probe.predict(merged.distinct) - probe.offset, dim=1).float()
    points, masses = merged.pad(points), merged.masses
    text = F.normalize(units.embeddings.float().masked_fill(~units.mask[..., None], 0.0), dim=2)
    cost = torch.stack(
        [_costs_to_texts(points[i], masses[i], text, units.mask, solver) for i in range(len(points))]
    ).double()
    return cost.mean(0, keepdim=True) + cost.mean(1, keepdim=True) - cost - cost.mean()


def _costs_to_texts(points: Tensor, masses: Tensor, text: Tensor, mask: Tensor, solver: str) -> Tensor:
    """Transport cost between one image and every text; n d, n, s m d, s m -> s."""
    real = masses > 0  # without padding
    x, a = points[real].expand(len(text), -1, -1), masses[real].expand(len(text), -1)
    return solve(x, text, x_weight=a, y_mask=mask, epsilon=0.02, tolerance=1e-2, solver=solver).transport_cost
