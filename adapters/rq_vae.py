"""RQ-VAE (kakaobrain/rq-vae-transformer; seen: git 341395e).

Quirks: `encode` is unquantized, and everything around the quantizer is b h w c. Codes are b h w d (depth): here the
indices are the first depth's and the vectors the sum of all depths. A codebook's last row is padding. Codebooks move by
EMA, without gradient. Tokens are of every depth, b h w d. Importing its transformer fails on Python ≥ 3.11.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.types import Quantized


class RQQuantizer:
    """RQBottleneck: (z_q b h w c, loss, codes b h w d)."""

    straight_through = True
    sums_lookups = True

    def __init__(self, module: nn.Module) -> None:
        if max(module.shape_divisor[:2]) > 1:
            raise ValueError(
                f"this RQBottleneck folds latents of {tuple(module.latent_shape)} into codes of "
                f"{tuple(module.code_shape)}, so codes and latents differ in width: pass parse= for it"
            )
        self.module = module

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; b h w c -> b c h w."""
        vectors, loss, codes = output
        to_map = "b h w c -> b c h w"
        return Quantized(rearrange(vectors, to_map), codes[..., 0], loss, latent=rearrange(z_in, to_map))

    def codebook(self) -> Tensor:
        """The first depth's table without its padding row; k c."""
        return self.module.codebooks[0].weight[:-1]

    @property
    def code_count(self) -> int:
        """Number of codes of the largest depth."""
        return max(self.module.n_embed)

    def read_tokens(self, z_in: Tensor, output: tuple) -> Tensor:
        """Numbers of every depth's codes; b h w d."""
        return output[2]

    def vectors_of(self, tokens: Tensor) -> Tensor:
        """The sum of every depth's codes; b h w d -> b c h w."""
        codes, _ = self.module.embed_code_with_depth(tokens)
        return rearrange(codes.sum(-2), "b h w c -> b c h w")


class RQVAE(HostAdapter):
    """RQVAE."""

    def encode(self, images: Tensor) -> None:
        """Encoder and quantizer (the host's `encode` stops before it)."""
        self.model.quantizer(self.model.encode(images))

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decode(rearrange(z_q, "b c h w -> b h w c"))
