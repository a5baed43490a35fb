"""Open-MAGVIT2 and IBQ (TencentARC/SEED-Voken; seen: git b9a17ea).

Quirks: both need modules `main` and `lightning` to import, and load state dicts non-strictly by default. Open-MAGVIT2's
LFQ returns ((q, entropy, indices), breakdown), its commitment loss in the breakdown alone; its codebook of ±1 is
constant. IBQ passes gradient to every code by itself, through a softmax over b k h w, and its loss may be a 4-tuple.
"""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.hosts.base import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class MagvitLFQQuantizer:
    """Open-MAGVIT2's LFQ: (q, entropy loss, indices), with or without its breakdown; indices flat."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        if module.token_factorization or module.num_codebooks > 1:
            raise ValueError(
                "LFQ with token_factorization or num_codebooks > 1 gives no single index: wrap the first-stage "
                "model, token_factorization=False, or pass parse="
            )
        self.module = module

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; the commitment loss is added where the host was given it."""
        breakdown = None
        if isinstance(output[0], tuple):
            output, breakdown = output
        vectors, loss, indices = output
        if breakdown is not None:
            loss = loss + breakdown.commitment
        return Quantized(vectors, indices.view(len(vectors), *vectors.shape[2:]).long(), loss)

    def codebook(self) -> Tensor:
        """All vectors of ±1; k c."""
        return self.module.codebook


class IBQQuantizer(EmbeddingQuantizer):
    """IndexPropagationQuantize: (z_q, loss or losses, (_, _, indices)), indices flat."""

    straight_through = False

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; of four losses the quantizer's and the entropy's."""
        vectors, loss, (_, _, indices) = output
        if isinstance(loss, tuple):
            loss = loss[0] + loss[3]
        return self.from_flat(vectors, indices, loss)
