"""ViT-VQGAN (thuanz123/enhancing-transformers; seen: git e1c185d).

Quirks: tokens are b n c on one grid, so the levels differ in depth, not in size; a layer's modules give its branches
alone, so the taps are the norms that the next layer begins with; the quantizer holds a lambda and cannot be pickled.
"""

from __future__ import annotations

from math import isqrt

from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.types import Quantized


def _as_map(tokens: Tensor) -> Tensor:
    return rearrange(tokens, "b (h w) c -> b c h w", h=isqrt(tokens.shape[1]))


class ViTQuantizer:
    """VectorQuantizer: (z_q b n c, loss, indices b n); GumbelQuantizer passes gradient to its codebook by itself."""

    def __init__(self, module: nn.Module) -> None:
        if module.use_residual:
            raise ValueError("ViT-VQGAN's quantizer with use_residual=True has no single index: pass parse= for it")
        self.module = module
        self.straight_through = module.straight_through

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; b n c -> b c h w."""
        vectors, loss, indices = output
        vectors = _as_map(vectors)
        latent = _as_map(self.module.norm(z_in))
        return Quantized(vectors, indices.view(len(vectors), *vectors.shape[2:]), loss, latent=latent)

    def codebook(self) -> Tensor:
        """The embedding, normalised where the host does so; k c."""
        return self.module.norm(self.module.embedding.weight)


class ViTVQGAN(HostAdapter):
    """ViTVQ and ViTVQGumbel on square images."""

    def find_taps(self) -> tuple[str, ...]:
        """What enters the layers after a third and two thirds of the depth."""
        n = len(self.model.encoder.transformer.layers)
        if n < 3:
            raise ValueError(f"this encoder has {n} layers and three levels need 3: name two modules in taps=")
        return tuple(f"encoder.transformer.layers.{i}.0.norm" for i in (n // 3, 2 * n // 3))

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """A layer's tokens as a map; b n c -> b c h w."""
        return _as_map(feature)

    def smallest(self) -> Tensor:
        """The only size the host takes."""
        patches = self.model.encoder.to_patch_embedding[0]
        side = isqrt(self.model.encoder.num_patches) * patches.stride[0]
        return patches.weight.new_zeros(1, patches.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decode(rearrange(z_q, "b c h w -> b (h w) c"))
