"""A control: the squared distance between pooled codes and pooled text."""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.losses.diagnostics import mean_over_images
from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.tavq import TAVQ


class PooledDistance(TextAlignment):
    """TextAlignment with the loss |pooled codes − pooled text|², both of unit length."""

    def losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's loss over the images with text; l b n d, l b m d -> l."""
        apart = (codes.pooled() - text.pooled()).square().sum(2)
        return mean_over_images(apart, text.nonempty)


class L2Distil(TAVQ):
    """Our control: TA-VQ's heads, units and weights, with a squared distance between pooled vectors as in distillation.

    Codes are projected, normalised, averaged over the grid and normalised again; units likewise. (VLTok, CVPR 2026,
    reports that L2 distillation beats a contrast; its teacher is an image encoder, ours is the text.) The settings are
    those of `TAVQ`; those of the solver and the contrast have no effect.
    """

    name = "l2-distil"
    alignment = PooledDistance
