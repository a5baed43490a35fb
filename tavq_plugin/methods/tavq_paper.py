"""A reading of TA-VQ that is nearer to its paper: Gaussian samples, constant λ, flat level weights, no contrast."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any, ClassVar

from tavq_plugin.losses.alignment_settings import WEIGHT, Balance
from tavq_plugin.methods.tavq import TAVQ

PAPER: dict[str, Any] = {
    "balance": None, "weight": WEIGHT, "weight_end": WEIGHT, "level_weights": (1.0, 1.0, 1.0),
    "distribution": "gaussian", "contrast": 0.0,
}  # fmt: skip


class TAVQPaper(TAVQ):
    """TA-VQ as its paper (arXiv 2503.01261) reads most plainly, in place of the settings that we chose.

    Codes are samples of a learnt Gaussian (Theorem 1), the loss is added with a constant λ, the three levels weigh the
    same, and there is no contrast. The paper's λ is not known to us; it is that of the weighted sum. Everything else is
    as in `TAVQ`: units, heads, solver. The settings are those of `TAVQ`, with these defaults.
    """

    name = "tavq-paper"
    auto_balance: ClassVar[Balance] = None

    @wraps(TAVQ.__init__)  # type: ignore[misc]  # so that its settings are those of `TAVQ`
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**PAPER, **settings})

    @classmethod
    def at_strength(cls, strength: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with λ multiplied by `strength`, at the start and at the end."""
        weight = strength * options.get("weight", WEIGHT)
        return {**cls.resolved_options(options), "weight": weight, "weight_end": weight}
