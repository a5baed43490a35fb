"""A control: pooled codes drawn to pooled text by their distance."""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.losses.diagnostics import mean_over_images
from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.tavq import TAVQ


class PooledDistance(TextAlignment):
    """TextAlignment by |pooled codes − pooled text|², both of unit length."""

    def losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's loss over the images with text; l b n d, l b m d -> l."""
        apart = (codes.pooled() - text.pooled()).square().sum(2)
        return mean_over_images(apart, text.nonempty)


class L2Distil(TAVQ):
    """Ours: the heads, units and weights of TA-VQ with a squared distance of the pooled, after distillation losses.

    Codes are projected and normalised, averaged over the places and normalised again; units likewise. (VLTok, CVPR
    2026, reports L2 distillation beating a contrast; its teacher is an image encoder, ours are the texts.) Takes the
    settings of `TAVQ`; those of the solver and the contrast have no effect.
    """

    name = "l2-distil"
    alignment = PooledDistance
