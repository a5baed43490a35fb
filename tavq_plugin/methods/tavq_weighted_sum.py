"""A control: TA-VQ whose alignment is added to the host's loss by weight, without balanced gradients."""

from __future__ import annotations

from typing import ClassVar

from tavq_plugin.losses.alignment_settings import Balance
from tavq_plugin.methods.tavq import TAVQ


class TAVQWeightedSum(TAVQ):
    """Our control: TA-VQ as a weighted sum of losses, by λ, which is what `tavq` was before version 0.2.

    What TA-VQ gains over it comes from balancing the gradients. The settings are those of `TAVQ`, with balance=None by
    default.
    """

    name = "tavq-weighted-sum"
    auto_balance: ClassVar[Balance] = None
