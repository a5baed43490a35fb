"""diffusers VQModel, also as MoVQ (norm_type="spatial"; seen: 0.42.1).

Quirks: `encode().latents` is unquantized and `decode` quantizes; `decode(..., force_not_quantize=True)` takes
vectors that are quantized already, and MoVQ's decoder reads them a second time in its norms; indices are flat; the
quantizer is taming's with `legacy=True` by default.
"""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.hosts.base import EmbeddingQuantizer, HostAdapter
from tavq_plugin.types import Quantized


class DiffusersQuantizer(EmbeddingQuantizer):
    """VectorQuantizer: (z_q, loss, (_, _, indices)), indices flat."""

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; indices flat -> b h w."""
        vectors, loss, (_, _, indices) = output
        return self.from_flat(vectors, indices, loss)


class DiffusersVQ(HostAdapter):
    """diffusers VQModel; its quantizer may be any known one."""

    def find_quantizer(self) -> str:
        """Always at the same place."""
        return "quantize"

    def find_taps(self) -> tuple[str, ...]:
        """A down block ends in its downsampler, so block i gives the resolution of level i+1; the last has none."""
        blocks = self.model.encoder.down_blocks
        n = len(blocks)
        if n < 3:
            raise ValueError(
                f"this encoder has {n} resolutions and three levels need 3: name two modules in taps=, fine to mid"
            )
        return tuple(f"encoder.down_blocks.{i}.resnets.{len(blocks[i].resnets) - 1}" for i in (n - 3, n - 2))

    def encode(self, images: Tensor) -> None:
        """Encoder and quantizer (the host's `encode` stops before it)."""
        self.model.quantize(self.model.encode(images).latents)

    def smallest(self) -> Tensor:
        """Two code places a side are enough to see every level."""
        side = 2 * 2 ** (len(self.model.encoder.down_blocks) - 1)
        return self.model.quant_conv.weight.new_zeros(1, self.model.config.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decode(z_q, force_not_quantize=True).sample
