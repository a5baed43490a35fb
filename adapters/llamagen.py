"""LlamaGen's VQModel (FoundationVision; seen: git ce98ec4).

Quirks: the loss is (vq, commit, entropy, usage), and (None, None, None, 0) in eval mode. With `codebook_l2_norm`, codes
and latents are compared, and decoded, on the unit sphere. The buffer `codebook_used` is a Parameter that requires
gradient, so training on a CPU and deepcopy fail until you set
`model.quantize.codebook_used = model.quantize.codebook_used.detach()`. A call with more than 65,536 tokens crashes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class LlamaGenQuantizer(EmbeddingQuantizer):
    """VectorQuantizer: (z_q, losses, (_, _, indices)), indices flat."""

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Indices flat -> b h w; the loss is the sum of those that are not None."""
        vectors, losses, (_, _, indices) = output
        loss = sum((part for part in losses[:3] if part is not None), vectors.new_zeros(()))
        latent = F.normalize(z_in, dim=1) if self.module.l2_norm else z_in
        return self.on_grid(vectors, indices, loss, latent)

    def codebook(self) -> Tensor:
        """The embedding, normalised if the host normalises it; k c."""
        table = self.module.embedding.weight
        return F.normalize(table, dim=-1) if self.module.l2_norm else table
