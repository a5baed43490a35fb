"""VAR's multi-scale VQVAE (FoundationVision; seen: git 78b9539).

Quirks: `forward` returns (rec, usages, loss) without indices, and needs a process group even in one process.
`test_mode=True`, the default, freezes everything. Grids other than the last of `v_patch_nums` crash. Indices are the
last scale's, from a second call of the quantizer without gradient; the vectors are the sum over all scales. Tokens are
of every scale, coarse to fine, one after another, b n, as VAR's transformer reads them.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class VARQuantizer(EmbeddingQuantizer):
    """VectorQuantizer2: (f_hat, usages, loss)."""

    sums_lookups = True

    @staticmethod
    def recognizes(module: nn.Module) -> bool:
        """True if this `models.quant` is VAR's; other code may have one of the same name."""
        return hasattr(module, "f_to_idxBl_or_fhat")

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """The last scale's indices, and the looked-up vectors with gradient to the codebook and φ."""
        vectors, _, loss = output
        tokens = self.read_tokens(z_in, output)
        indices = rearrange(tokens[:, -(self.module.v_patch_nums[-1] ** 2) :], "b (h w) -> b h w", h=vectors.shape[2])
        return Quantized(vectors, indices, loss, looked_up=self.vectors_of(tokens))

    @property
    def code_count(self) -> int:
        """Number of codes, which all scales share."""
        return self.module.vocab_size

    def read_tokens(self, z_in: Tensor, output: tuple) -> Tensor:
        """Numbers of every scale's codes, the coarsest scale first; b n."""
        with torch.no_grad():
            return torch.cat(self.module.f_to_idxBl_or_fhat(z_in.detach().float(), to_fhat=False), dim=1)

    def vectors_of(self, tokens: Tensor) -> Tensor:
        """The sum over all scales, with gradient to the codebook and φ; b n -> b c h w."""
        sides = self.module.v_patch_nums
        scales = tokens.split([side**2 for side in sides], dim=1)
        maps = [
            rearrange(self.module.embedding(indices), "b (h w) c -> b c h w", h=side)
            for indices, side in zip(scales, sides, strict=True)
        ]
        return self.module.embed_to_fhat(maps, all_to_max_scale=True, last_one=True)


class VAR(HostAdapter):
    """VQVAE, which accepts one grid only."""

    @staticmethod
    def recognizes(model: nn.Module) -> bool:
        """True if this `models.vqvae` is VAR's; other code may have one of the same name."""
        return hasattr(model, "fhat_to_img")

    def encode(self, images: Tensor) -> None:
        """Encoder, convolution and quantizer."""
        self.model.quantize(self.model.quant_conv(self.model.encoder(images)))

    def smallest_images(self) -> Tensor:
        """One image of the only size the host accepts."""
        side = self.model.quantize.v_patch_nums[-1] * self.model.downsample
        return self.model.quant_conv.weight.new_zeros(1, 3, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images, not clamped, as in training; b c h w -> b 3 h w."""
        return self.model.decoder(self.model.post_quant_conv(z_q))
