"""Retrieval by transport: an image and a text are as near as the transport between its codes and the text's units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.probes import Ridge
from tavq_plugin.losses.unique_codes import merge_repeated_codes
from tavq_plugin.ot.solve import solve
from tavq_plugin.types import Units


def transport_scores(quantized: Tensor, indices: Tensor, units: Units, probe: Ridge) -> Tensor:
    """How near each image is to each text, greater is nearer; s c h w, s h w, s m d -> s s, images first.

    Every code goes through the fitted probe (less its offset) to the unit sphere; the cost is squared Euclidean, the
    blur .02 of a problem's scale. Costs are freed of each image's and each text's own mean, as centring does for
    pooled vectors: a text near everything is no find.
    """
    merged = merge_repeated_codes(quantized, indices)
    points = F.normalize(probe.predict(merged.distinct) - probe.offset, dim=1).float()
    points, masses = merged.pad(points), merged.masses
    text = F.normalize(units.embeddings.float().masked_fill(~units.mask[..., None], 0.0), dim=2)
    cost = torch.stack([_to_all(points[i], masses[i], text, units.mask) for i in range(len(points))]).double()
    return cost.mean(0, keepdim=True) + cost.mean(1, keepdim=True) - cost - cost.mean()


def _to_all(points: Tensor, masses: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Cost of one image against every text; n d, n, s m d, s m -> s."""
    there = masses > 0
    x, a = points[there].expand(len(text), -1, -1), masses[there].expand(len(text), -1)
    return solve(x, text, x_weight=a, y_mask=mask, epsilon=0.02, tolerance=1e-2).transport_cost
