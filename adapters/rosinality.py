"""rosinality's vq-vae-2-pytorch (seen: git ef5f67c).

Quirks: it has two quantizers, `quantize_t` (coarse) and `quantize_b`, and a decoder that reads both. The last level
here is the coarse one, and its vectors alone cannot be decoded; tokens are of both, b h w 5: the coarse one, then the
four fine ones at the same place. Quantizers take and return b h w c. Their codebook is a
buffer c k, moved by EMA. Many activations are in place; the dry run skips the outputs they change.
"""

from __future__ import annotations

import torch
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
    def recognizes(module: nn.Module) -> bool:
        """True if this `vqvae.Quantize` is rosinality's; other code may have one of the same name."""
        return hasattr(module, "embed_avg") and hasattr(module, "n_embed")

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; b h w c -> b c h w."""
        vectors, loss, indices = output
        to_map = "b h w c -> b c h w"
        return Quantized(rearrange(vectors, to_map), indices, loss, latent=rearrange(z_in, to_map))

    def codebook(self) -> Tensor:
        """The buffer, transposed; k c."""
        return self.module.embed.T


class VQVAE2(HostAdapter):
    """VQVAE with its coarse quantizer as the last level."""

    @staticmethod
    def recognizes(model: nn.Module) -> bool:
        """True if this `vqvae.VQVAE` is rosinality's; other code may have one of the same name."""
        return hasattr(model, "quantize_t") and hasattr(model, "quantize_b")

    def find_quantizer(self) -> str:
        """Path of the coarse quantizer."""
        return "quantize_t"

    def encode(self, images: Tensor) -> None:
        """Both encoders and quantizers."""
        self.model.encode(images)

    def decode(self, z_q: Tensor) -> Tensor:
        """Impossible: the decoder reads both quantizers' maps."""
        raise NotImplementedError(
            "VQ-VAE-2 decodes from two maps, quant_t and quant_b: call the host's own decode, or decode_tokens"
        )

    def own_tokens(self, images: Tensor) -> Tensor:
        """Numbers of both quantizers' codes; b 3 h w -> b h w 5 on the coarse grid."""
        *_, coarse, fine = self.model.encode(images)
        fine = rearrange(fine, "b (h s) (w t) -> b h w (s t)", s=2, t=2)
        return torch.cat([coarse[..., None], fine], dim=-1)

    def decode_own_tokens(self, tokens: Tensor) -> Tensor:
        """Images as the host's own `decode_code` gives them; b h w 5 -> b 3 h w."""
        fine = rearrange(tokens[..., 1:], "b h w (s t) -> b (h s) (w t)", s=2, t=2)
        return self.model.decode_code(tokens[..., 0], fine)
