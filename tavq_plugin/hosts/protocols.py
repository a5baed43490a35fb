"""What an adapter and the reading of a quantizer must offer."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tavq_plugin.types import Quantized


class QuantizerAdapter(Protocol):
    """What one quantizer class takes and returns; built anew on the live module at each step."""

    straight_through: bool  # False where the quantizer passes gradient to its codebook by itself (Gumbel)

    def parse(self, z_in: Any, output: Any) -> Quantized:
        """The quantizer's input and raw output, understood."""

    def codebook(self) -> Tensor | None:
        """The live codebook in the width the decoder reads, k c, or None where there is no explicit one."""


@runtime_checkable
class Adapter(Protocol):
    """How one host codebase is spoken to; one file each in `adapters/`."""

    model: nn.Module
    taps: tuple[str, ...]  # module paths, fine → mid
    quantizer: str  # module path, resolved at each step
    straight_through: bool  # False where the host's quantizer passes gradient to its codebook by itself (Gumbel)

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """The feature a tap gave, as a map; anything -> b c h w."""

    def parse(self, z_in: Tensor, output: Any) -> Quantized:
        """The quantizer's input and raw output, understood."""

    def encode(self, images: Tensor) -> None:
        """Run the host up to and through its quantizer; the hooks do the rest."""

    def probe(self) -> Tensor:
        """The smallest batch of images worth running, b c h w, on the host's device: shows the levels' sizes."""

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""

    def codebook(self) -> Tensor | None:
        """The live codebook, k c, or None where the host has no explicit one."""

    def last_layer(self) -> Tensor | None:
        """Weight of the decoder's last layer, for adaptive loss weights."""
