"""OptVQ (zbr17/OptVQ, seen: git b71895c).

Quirks: the codebook may be an embedding through a learnt linear map. `VectorQuantizerSinkhorn` chooses codes by optimal
transport over the batch, and draws them at random with `use_prob=True`, so that a code is often not the nearest.
`VQModel.forward` returns a loss; `mode=3`, or `VQModelHF`, gives images. Several heads (`num_head` above 1) are
refused.
"""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class OptVQQuantizer(EmbeddingQuantizer):
    """VectorQuantizer and VectorQuantizerSinkhorn: (z_q, loss, indices), indices b 1 h w."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        if self.module.num_head > 1:
            raise ValueError(
                f"this OptVQ quantizer has num_head={self.module.num_head}, so several codes make one vector, and one "
                "code was needed: train with num_head=1"
            )

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output."""
        return self.on_grid(output[0], output[2], output[1])

    def codebook(self) -> Tensor:
        """The embedding, through its linear map if it has one; k c."""
        table = self.module.embedding.weight
        return self.module.proj(table) if self.module.use_proj else table
