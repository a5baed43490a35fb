"""A control: a contrast of pooled codes with the batch's pooled texts, without transport."""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.losses.point_clouds import PointClouds
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.tavq import TAVQ


class ContrastOnly(TextAlignment):
    """TextAlignment with its contrast alone; the contrast keeps its weight."""

    def losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's loss over the images with text; l b n d, l b m d -> l."""
        return self.contrast * self.contrast_losses(codes, text)


class InfoNCE(TAVQ):
    """InfoNCE (van den Oord et al. 2018, eq. 4; both ways, as in CLIP) between an image's pooled codes and its text.

    Our control: TA-VQ without its transport, with the same heads, units and weights at each level. The
    settings are those of `TAVQ`; those of the solver have no effect with contrast_on="pooled".
    """

    name = "infonce"
    alignment = ContrastOnly
