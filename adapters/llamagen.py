"""LlamaGen's VQModel (FoundationVision; seen: git ce98ec4).

Quirks: loss is (vq, commit, entropy, usage), (None, None, None, 0) in eval; with `codebook_l2_norm` codes and latents
are compared, and decoded, on the unit sphere; the buffer `codebook_used` is a Parameter that wants gradient, so that
training on a CPU and deepcopy fail until `model.quantize.codebook_used = model.quantize.codebook_used.detach()`; a
call of more than 65,536 tokens crashes it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.types import Quantized


class LlamaGenQuantizer:
    """VectorQuantizer: (z_q, losses, (_, _, indices)), indices flat."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; its loss is the sum of those that are there."""
        vectors, losses, (_, _, indices) = output
        loss = sum((part for part in losses[:3] if part is not None), vectors.new_zeros(()))
        latent = F.normalize(z_in, dim=1) if self.module.l2_norm else z_in
        return Quantized(vectors, indices.view(len(vectors), *vectors.shape[2:]), loss, latent=latent)

    def codebook(self) -> Tensor:
        """The embedding, on the unit sphere where the host puts it there; k c."""
        table = self.module.embedding.weight
        return F.normalize(table, dim=-1) if self.module.l2_norm else table
