"""VAR's multi-scale VQVAE (FoundationVision; seen: git 78b9539).

Quirks: `forward` returns (rec, usages, loss), no indices, and needs a process group even alone; `test_mode=True`, the
default, freezes everything; grids other than the last of `v_patch_nums` crash. Indices are the last scale's, found by
asking the quantizer once more without gradient; the vectors are the sum over all scales.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.types import Quantized


class VARQuantizer:
    """VectorQuantizer2: (f_hat, usages, loss)."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether `models.quant` is VAR's: others may have a module of that name."""
        return hasattr(module, "f_to_idxBl_or_fhat")

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output, and what it looked up, with gradient to codebook and φ."""
        vectors, _, loss = output
        with torch.no_grad():
            scales = self.module.f_to_idxBl_or_fhat(z_in.detach().float(), to_fhat=False)
        maps = [
            rearrange(self.module.embedding(indices), "b (h w) c -> b c h w", h=n)
            for indices, n in zip(scales, self.module.v_patch_nums, strict=True)
        ]
        looked_up = self.module.embed_to_fhat(maps, all_to_max_scale=True, last_one=True)
        indices = scales[-1].view(len(vectors), *vectors.shape[2:])
        return Quantized(vectors, indices, loss, looked_up=looked_up)

    def codebook(self) -> Tensor:
        """The table of all scales, k c."""
        return self.module.embedding.weight


class VAR(HostAdapter):
    """VQVAE with one possible grid."""

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether `models.vqvae` is VAR's: others may have a module of that name."""
        return hasattr(model, "fhat_to_img")

    def encode(self, images: Tensor) -> None:
        """Encoder, convolution and quantizer."""
        self.model.quantize(self.model.quant_conv(self.model.encoder(images)))

    def smallest(self) -> Tensor:
        """The only size the host takes."""
        side = self.model.quantize.v_patch_nums[-1] * self.model.downsample
        return self.model.quant_conv.weight.new_zeros(1, 3, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images, not clamped, as in training; b c h w -> b 3 h w."""
        return self.model.decoder(self.model.post_quant_conv(z_q))
