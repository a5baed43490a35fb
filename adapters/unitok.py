"""UniTok's quantizer, in any autoencoder (FoundationVision/UniTok, seen: git bb8012e).

Quirks: it takes and returns tokens, b n c, and no indices, so these are found again. It looks up the L2-normalised
table with L2-normalised latents. With several codebooks (`num_codebooks` above 1), each part of the width has one, so
there is no single table: wrap it with codebook="own", codebook_size=, grad_to="encoder"; the indices are then those of
the first codebook, and tokens are of all of them, b h w m. It counts its codes in eval mode too.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.types import Quantized


class UniTokQuantizer:
    """VectorQuantizerM: (vectors, loss, entropy loss, usage)."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the output; tokens of a square grid, b (h w) c -> b c h w."""
        vectors, loss, entropy, _ = output
        with torch.no_grad():
            first = self.module.f_to_idx(z_in)[:, 0]
        parts = rearrange(z_in.float(), "b n (m c) -> b n m c", m=self.module.num_codebooks)
        latent = rearrange(F.normalize(parts, dim=-1), "b n m c -> b n (m c)")
        indices = rearrange(first, "b (h w) -> b h w", h=isqrt(first.shape[1]))
        return Quantized(_as_map(vectors), indices, loss + entropy, latent=_as_map(latent))

    def codebook(self) -> Tensor | None:
        """The normalised table, k c; None if there are several."""
        tables = self.module.codebooks
        return tables[0].codebook.get_norm_weight() if len(tables) == 1 else None

    @property
    def code_count(self) -> int:
        """Number of codes of each codebook."""
        return self.module.codebooks[0].vocab_size

    def read_tokens(self, z_in: Tensor, output: tuple) -> Tensor:
        """Numbers of every codebook's codes; b h w of one codebook, b h w m of several."""
        tokens = self.module.f_to_idx(z_in)
        tokens = rearrange(tokens, "b m (h w) -> b h w m", h=isqrt(tokens.shape[2]))
        return tokens.squeeze(-1) if self.module.num_codebooks == 1 else tokens

    def vectors_of(self, tokens: Tensor) -> Tensor:
        """The concatenated codes of every codebook; b h w or b h w m -> b c h w."""
        tokens = tokens[..., None] if tokens.ndim == 3 else tokens
        vectors = self.module.idx_to_f(rearrange(tokens, "b h w m -> b m h w"))
        return rearrange(vectors, "b (h w) c -> b c h w", h=tokens.shape[1])


def _as_map(tokens: Tensor) -> Tensor:
    """Tokens of a square grid as a map; b (h w) c -> b c h w."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=isqrt(tokens.shape[1]))
