"""Any other host, described by its user: taps, quantizer, and what the quantizer returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.contract import Quantized
from tavq_plugin.tap import find

LAYOUTS = ("b c h w", "b h w c", "b n c", "n b c", "b c n")


class Described:
    """A host without an adapter of its own; `layout` says how its tapped features lie (square where flat)."""

    straight_through = True

    def __init__(
        self,
        model: nn.Module,
        *,
        taps: Sequence[str],
        quantizer: str,
        parse: Callable[[Tensor, Any], Quantized],
        layout: str | None = None,
    ) -> None:
        layout = layout or "b c h w"
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: give one of {', '.join(map(repr, LAYOUTS))}")
        self.model, self.taps, self.quantizer, self.layout = model, tuple(taps), quantizer, layout
        self.parse = parse

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """A tapped feature as a map; `layout` -> b c h w."""
        if "n" not in self.layout.split():
            return rearrange(feature, f"{self.layout} -> b c h w")
        n = feature.shape[self.layout.split().index("n")]
        if isqrt(n) ** 2 != n:
            raise ValueError(f"a feature of level {level + 1} has {n} tokens, no square grid: tap a map instead")
        return rearrange(feature, f"{self.layout.replace('n', '(h w)')} -> b c h w", h=isqrt(n))

    def encode(self, images: Tensor) -> None:
        """The whole host: nothing is known of its parts."""
        self.model(images)

    def probe(self) -> Tensor:
        """A 64 px RGB image on the host's device."""
        return next(self.model.parameters()).new_zeros(1, 3, 64, 64)

    def decode(self, z_q: Tensor) -> Tensor:
        """The host's own `decode`; b c h w -> b 3 h w."""
        return self.model.decode(z_q)

    def codebook(self) -> Tensor | None:
        """The quantizer's only two-dimensional parameter (k c), or None where it has none or several."""
        tables = [p for p in find(self.model, self.quantizer).parameters() if p.ndim == 2]
        return tables[0] if len(tables) == 1 else None

    def last_layer(self) -> Tensor | None:
        """Unknown."""
        return None
