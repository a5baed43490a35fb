"""PyTorch-VAE's VQVAE (AntixK/PyTorch-VAE, seen: git a6896b9).

Quirks: the quantizer returns no indices, so they are found again from what it was given. The class path is generic, so
the attributes are checked too. The default encoder halves the image twice: name its two halvings in
taps=("encoder.0", "encoder.1").
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class PyTorchVAEQuantizer(EmbeddingQuantizer):
    """VectorQuantizer: (z_q, loss)."""

    @staticmethod
    def recognizes(module: nn.Module) -> bool:
        """True if this `VectorQuantizer` is PyTorch-VAE's; other code may have one at the same path."""
        return all(hasattr(module, name) for name in ("K", "D", "beta", "embedding"))

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the output; the indices are those of the rows nearest to the vectors."""
        vectors, loss = output
        with torch.no_grad():
            places = rearrange(vectors.float(), "b c h w -> (b h w) c")
            indices = torch.cdist(places, self.codebook().float()).argmin(1)
        return self.on_grid(vectors, indices, loss)
