"""Show-o's MAGVITv2 (showlab/Show-o, seen: git 45a5a2d).

Quirks: `forward` does nothing; `encode` quantizes. The quantizer returns a dict. Its codebook is a buffer of signs,
which takes no gradient. There is no `decode` of vectors, but a decoder that returns a dict.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class SignQuantizer(EmbeddingQuantizer):
    """LFQuantizer: z, quantizer_loss, entropy_loss, indices b 1 h w."""

    @staticmethod
    def recognizes(module: nn.Module) -> bool:
        """True if this `LFQuantizer` is Show-o's; other code may have one at the same path."""
        return hasattr(module, "power_vals")

    def parse(self, z_in: Tensor, output: dict[str, Any]) -> Quantized:
        """Read the quantizer's output."""
        return self.on_grid(output["z"], output["indices"], output["quantizer_loss"] + output["entropy_loss"])

    def codebook(self) -> Tensor:
        """All sign vectors, k c."""
        return self.module.embedding


class MAGVITv2(HostAdapter):
    """MAGVITv2: an encoder, the quantizer and a decoder."""

    def find_quantizer(self) -> str:
        """The quantizer's path, the same in every model of this class."""
        return "quantize"

    def encode(self, images: Tensor) -> None:
        """Encoder and quantizer, as the host's `encode`."""
        self.model.encode(images)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decoder(z_q)["output"]
