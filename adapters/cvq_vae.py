"""CVQ-VAE (lyndonzheng; seen: git 04864b7).

Quirks: only two resolutions, so level 2 lies on the code grid; every training forward writes the codebook's `.data`
anew, also under no_grad, and not alike on two ranks of DDP; activations in place spoil most other taps; `encode`
unpacks what its quantizer does not return, and fails.
"""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.hosts.base import EmbeddingQuantizer, HostAdapter
from tavq_plugin.types import Quantized


class CVQQuantizer(EmbeddingQuantizer):
    """VectorQuantiser: (z_q, loss, (perplexity, _, indices)), indices flat."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether `quantise` is CVQ-VAE's: others may have a module of that name."""
        return hasattr(module, "anchor") and hasattr(module, "embed_prob")

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; indices flat -> b h w."""
        vectors, loss, (_, _, indices) = output
        return self.from_flat(vectors, indices, loss)


class CVQ(HostAdapter):
    """CVQ-VAE's Model."""

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether `modules.Model` is CVQ-VAE's: others may have a module of that name."""
        return hasattr(model, "_vq_vae")

    def find_taps(self) -> tuple[str, ...]:
        """The two strided convolutions."""
        return ("_encoder._conv_1", "_encoder._conv_2")

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model._decoder(z_q)
