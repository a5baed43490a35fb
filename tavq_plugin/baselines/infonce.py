"""A control: pooled codes against the pooled texts of the batch, by a contrast alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tavq_plugin.align.loss import TextAlignment
from tavq_plugin.baselines.tavq import TAVQ
from tavq_plugin.contract import Units


class ContrastOnly(TextAlignment):
    """TextAlignment by its contrast alone, whatever its weight."""

    def losses(self, measures: Sequence[tuple[Tensor, Tensor]], units: Sequence[Units]) -> Tensor:
        """Each level's loss over the images with text; l × (b n d, b n), l × b m d -> l."""
        return torch.stack([self.contrasted(*measure, part) for measure, part in zip(measures, units, strict=True)])


class InfoNCE(TAVQ):
    """InfoNCE (van den Oord et al. 2018, eq. 4; both ways, as in CLIP) between an image's pooled codes and its text.

    Ours: with the heads, units and weights of TA-VQ, level by level, each process within its own batch. Takes the
    settings of `TAVQ`; those of the solver and `contrast` have no effect with contrast_on="pooled".
    """

    name = "infonce"
    alignment = ContrastOnly
