"""Open-MAGVIT2 and IBQ (TencentARC/SEED-Voken; seen: git b9a17ea).

Quirks: both import only if modules `main` and `lightning` exist, and load state dicts non-strictly by default.
Open-MAGVIT2's LFQ returns ((q, entropy, indices), breakdown), with its commitment loss only in the breakdown; its
codebook of ±1 is constant. IBQ passes gradient to every code by itself, through a softmax over b k h w, and its loss
may be a 4-tuple.
"""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class MagvitLFQQuantizer(EmbeddingQuantizer):
    """Open-MAGVIT2's LFQ: (q, entropy loss, indices), with or without its breakdown; indices flat."""

    def __init__(self, module: nn.Module) -> None:
        if module.token_factorization or module.num_codebooks > 1:
            raise ValueError(
                "LFQ with token_factorization or num_codebooks > 1 gives no single index: wrap the first-stage "
                "model, token_factorization=False, or pass parse="
            )
        super().__init__(module)

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Indices flat -> b h w; the commitment loss is added if the output has a breakdown."""
        breakdown = None
        if isinstance(output[0], tuple):
            output, breakdown = output
        vectors, loss, indices = output
        if breakdown is not None:
            loss = loss + breakdown.commitment
        return self.on_grid(vectors, indices, loss)

    def codebook(self) -> Tensor:
        """All vectors of ±1; k c."""
        return self.module.codebook


class IBQQuantizer(EmbeddingQuantizer):
    """IndexPropagationQuantize: (z_q, loss or losses, (_, _, indices)), indices flat."""

    straight_through = False

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Indices flat -> b h w; of four losses, the quantizer's and the entropy's are summed."""
        vectors, loss, (_, _, indices) = output
        if isinstance(loss, tuple):
            loss = loss[0] + loss[3]
        return self.on_grid(vectors, indices, loss)
