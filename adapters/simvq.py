"""SimVQ's own tokenizer (youngsheen/SimVQ, seen: git d8bd94d).

Quirks: the codebook is a frozen embedding through a learnt linear map, so it is computed anew in each step. The
quantizer returns a tuple in a tuple. `forward` counts the codes in `codebook_count`, a list that its training program
sets: set it before `wrap`. The package is called `taming`, so it cannot be imported beside taming-transformers.
"""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class SimVQHostQuantizer(EmbeddingQuantizer):
    """SimVQ: ((z_q, 0, indices), losses), indices flat."""

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the output; the loss is the commitment loss."""
        (vectors, _, indices), losses = output
        return self.on_grid(vectors, indices, losses.commitment)

    def codebook(self) -> Tensor:
        """The embedding through its linear map, k c."""
        return self.module.embedding_proj(self.module.embedding.weight)
