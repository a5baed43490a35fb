"""A control: pooled codes drawn to pooled text by their distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tavq_plugin.align.contrast import pooled
from tavq_plugin.align.distribution import text_measure
from tavq_plugin.align.loss import TextAlignment, over_images
from tavq_plugin.baselines.tavq import TAVQ
from tavq_plugin.contract import Units


class PooledDistance(TextAlignment):
    """TextAlignment by |pooled codes − pooled text|², both of unit length."""

    def losses(self, measures: Sequence[tuple[Tensor, Tensor]], units: Sequence[Units]) -> Tensor:
        """Each level's loss over the images with text; l × (b n d, b n), l × b m d -> l."""
        apart = []
        for (points, masses), part in zip(measures, units, strict=True):
            text = pooled(*text_measure(part, points.dtype))
            apart.append((pooled(points, masses) - text).square().sum(1) * part.mask.any(1))
        return over_images(torch.cat(apart), units)


class L2Distil(TAVQ):
    """Ours: the heads, units and weights of TA-VQ with a squared distance of the pooled, after distillation losses.

    Codes are projected and normalised, averaged over the places and normalised again; units likewise. (VLTok, CVPR
    2026, reports L2 distillation beating a contrast; its teacher is an image encoder, ours are the texts.) Takes the
    settings of `TAVQ`; those of the solver and the contrast have no effect.
    """

    name = "l2-distil"
    alignment = PooledDistance
