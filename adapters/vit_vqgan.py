"""ViT-VQGAN (thuanz123/enhancing-transformers; seen: git e1c185d).

Quirks: tokens are b n c on one grid, so the levels differ in depth, not in size. A layer's modules return only its
residual branches, so the taps are the norms that the next layer begins with. The quantizer holds a lambda and cannot be
pickled.
"""

from __future__ import annotations

from math import isqrt

from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


def _as_map(tokens: Tensor) -> Tensor:
    return rearrange(tokens, "b (h w) c -> b c h w", h=isqrt(tokens.shape[1]))


class ViTQuantizer(EmbeddingQuantizer):
    """VectorQuantizer: (z_q b n c, loss, indices b n); GumbelQuantizer passes gradient to its codebook by itself."""

    def __init__(self, module: nn.Module) -> None:
        if module.use_residual:
            raise ValueError("ViT-VQGAN's quantizer with use_residual=True has no single index: pass parse= for it")
        super().__init__(module)
        self.straight_through = module.straight_through

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; b n c -> b c h w."""
        vectors, loss, indices = output
        return self.on_grid(_as_map(vectors), indices, loss, latent=_as_map(self.module.norm(z_in)))

    def codebook(self) -> Tensor:
        """The embedding, normalised if the host normalises it; k c."""
        return self.module.norm(self.module.embedding.weight)


class ViTVQGAN(HostAdapter):
    """ViTVQ and ViTVQGumbel on square images."""

    def find_taps(self) -> tuple[str, ...]:
        """The norms that begin the layers after a third and two thirds of the depth."""
        n = len(self.model.encoder.transformer.layers)
        if n < 3:
            raise ValueError(f"this encoder has {n} layers and three levels need 3: name two modules in taps=")
        return tuple(f"encoder.transformer.layers.{i}.0.norm" for i in (n // 3, 2 * n // 3))

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """A layer's tokens as a map; b n c -> b c h w."""
        return _as_map(feature)

    def smallest_images(self) -> Tensor:
        """One image of the only size the host accepts."""
        patches = self.model.encoder.to_patch_embedding[0]
        side = isqrt(self.model.encoder.num_patches) * patches.stride[0]
        return patches.weight.new_zeros(1, patches.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decode(rearrange(z_q, "b c h w -> b (h w) c"))
