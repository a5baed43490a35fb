"""diffusers VQModel, also as MoVQ (norm_type="spatial"; seen: 0.42.1).

Quirks: `encode().latents` is unquantized and `decode` quantizes. `decode(..., force_not_quantize=True)` takes quantized
vectors, but indices in aMUSEd's tokenizer (`lookup_from_codebook=True`), so the parts of `decode` are called here.
MoVQ's decoder reads the vectors a second time in its norms. Indices are flat. The quantizer is taming's, with
`legacy=True` by default.
"""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer


class DiffusersQuantizer(EmbeddingQuantizer):
    """VectorQuantizer: (z_q, loss, (_, _, indices)), indices flat."""


class DiffusersVQ(HostAdapter):
    """diffusers VQModel, with any known quantizer."""

    def find_quantizer(self) -> str:
        """The quantizer's path, the same in every model of this class."""
        return "quantize"

    def find_taps(self) -> tuple[str, ...]:
        """The last ResNet of two down blocks, as a block itself ends in a downsampler (the last block has none)."""
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

    def smallest_images(self) -> Tensor:
        """Images of 2×2 codes, which show every level."""
        side = 2 * 2 ** (len(self.model.encoder.down_blocks) - 1)
        return self.model.quant_conv.weight.new_zeros(1, self.model.config.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        model = self.model
        return model.decoder(model.post_quant_conv(z_q), z_q if model.config.norm_type == "spatial" else None)
