"""A control: pooled codes against the pooled texts of the batch, by a contrast alone."""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.tavq import TAVQ


class ContrastOnly(TextAlignment):
    """TextAlignment by its contrast alone, at its weight beside the transport."""

    def losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's loss over the images with text; l b n d, l b m d -> l."""
        return self.contrast * self.contrast_losses(codes, text)


class InfoNCE(TAVQ):
    """InfoNCE (van den Oord et al. 2018, eq. 4; both ways, as in CLIP) between an image's pooled codes and its text.

    Ours: TA-VQ less its transport, with its heads, units and weights, level by level. Takes the settings of `TAVQ`;
    those of the solver have no effect with contrast_on="pooled".
    """

    name = "infonce"
    alignment = ContrastOnly
