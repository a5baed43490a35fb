"""CVQ-VAE (lyndonzheng; seen: git 04864b7).

Quirks: there are only two resolutions, so level 2 has the code grid. Every training forward rewrites the codebook's
`.data`, also under no_grad, and differently on the ranks of DDP. In-place activations make most other taps unusable.
`encode` unpacks values that its quantizer does not return, and fails.
"""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer


class CVQQuantizer(EmbeddingQuantizer):
    """VectorQuantiser: (z_q, loss, (perplexity, _, indices)), indices flat."""

    moves_codebook = True

    @staticmethod
    def recognizes(module: nn.Module) -> bool:
        """True if this `quantise` is CVQ-VAE's; other code may have one of the same name."""
        return hasattr(module, "anchor") and hasattr(module, "embed_prob")


class CVQ(HostAdapter):
    """CVQ-VAE's Model."""

    @staticmethod
    def recognizes(model: nn.Module) -> bool:
        """True if this `modules.Model` is CVQ-VAE's; other code may have one of the same name."""
        return hasattr(model, "_vq_vae")

    def find_taps(self) -> tuple[str, ...]:
        """The two strided convolutions."""
        return ("_encoder._conv_1", "_encoder._conv_2")

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model._decoder(z_q)
