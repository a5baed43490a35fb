"""diffusers VQModel (seen: 0.42.1).

Quirks: `encode().latents` is unquantized and `decode` quantizes; `decode(..., force_not_quantize=True)` takes
vectors that are quantized already; indices are flat; the quantizer is taming's with `legacy=True` by default.
"""

from __future__ import annotations

from torch import Tensor, nn

from tavq_plugin.contract import Quantized


class DiffusersVQ:
    """diffusers VQModel: quantizer output (z_q, loss, (_, _, indices)), indices flat."""

    quantizer = "quantize"
    straight_through = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        blocks = len(model.encoder.down_blocks)
        if blocks < 3:
            raise ValueError(
                f"this encoder has {blocks} resolutions and three levels need 3: name two modules in taps=, fine to mid"
            )
        # a down block ends in its downsampler, so block i gives the resolution of level i+1; the last has none
        self.taps = tuple(f"encoder.down_blocks.{i}.resnets.{self._last(i)}" for i in (blocks - 3, blocks - 2))

    def _last(self, block: int) -> int:
        return len(self.model.encoder.down_blocks[block].resnets) - 1

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """Features are maps already; b c h w -> b c h w."""
        return feature

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Quantizer's output; indices flat -> b h w."""
        vectors, loss, (_, _, indices) = output
        return Quantized(vectors, indices.view(len(vectors), *vectors.shape[2:]), loss)

    def encode(self, images: Tensor) -> None:
        """Encoder and quantizer (the host's `encode` stops before it)."""
        self.model.quantize(self.model.encode(images).latents)

    def probe(self) -> Tensor:
        """Two code places a side are enough to see every level."""
        side = 2 * 2 ** (len(self.model.encoder.down_blocks) - 1)
        return self.model.quant_conv.weight.new_zeros(1, self.model.config.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decode(z_q, force_not_quantize=True).sample

    def codebook(self) -> Tensor:
        """The quantizer's embedding, k c."""
        return self.model.quantize.embedding.weight

    def last_layer(self) -> Tensor:
        """The decoder's last convolution."""
        return self.model.decoder.conv_out.weight
