"""dome272's VQGAN-pytorch (seen: git aa64848).

Quirks: `forward` and `encode` return (…, indices, loss), in another order than taming's. `encoder.model` is one
Sequential; a dry run finds its taps. β is on the codebook's term.
"""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class CodebookQuantizer(EmbeddingQuantizer):
    """Codebook: (z_q, indices, loss), indices flat."""

    @staticmethod
    def recognizes(module: nn.Module) -> bool:
        """True if this `codebook` is dome272's; other code may have one of the same name."""
        return hasattr(module, "num_codebook_vectors") and hasattr(module, "latent_dim")

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; indices flat -> b h w."""
        vectors, indices, loss = output
        return self.on_grid(vectors, indices, loss)
