"""rosinality's vq-vae-2-pytorch (seen: git ef5f67c).

Quirks: two quantizers, `quantize_t` (coarse) and `quantize_b`, and a decoder that reads both: the last level here is
the coarse one, and vectors of it alone cannot be decoded; quantizers take and give b h w c; their codebook is a buffer
c k, moved by EMA; many activations are in place, and the dry run passes by what they spoil.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.types import Quantized


class RosinalityQuantizer:
    """Quantize: (z_q b h w c, loss, indices b h w)."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether `vqvae.Quantize` is rosinality's: others may have a module of that name."""
        return hasattr(module, "embed_avg") and hasattr(module, "n_embed")

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; b h w c -> b c h w."""
        vectors, loss, indices = output
        to_map = "b h w c -> b c h w"
        return Quantized(rearrange(vectors, to_map), indices, loss, latent=rearrange(z_in, to_map))

    def codebook(self) -> Tensor:
        """The buffer, turned; k c."""
        return self.module.embed.T


class VQVAE2(HostAdapter):
    """VQVAE with its coarse quantizer as the last level."""

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether `vqvae.VQVAE` is rosinality's: others may have a module of that name."""
        return hasattr(model, "quantize_t") and hasattr(model, "quantize_b")

    def find_quantizer(self) -> str:
        """The coarse one."""
        return "quantize_t"

    def encode(self, images: Tensor) -> None:
        """Both encoders and quantizers."""
        self.model.encode(images)

    def decode(self, z_q: Tensor) -> Tensor:
        """Impossible: the decoder reads both quantizers' maps."""
        raise NotImplementedError("VQ-VAE-2 decodes from two maps, quant_t and quant_b: call the host's own decode")
