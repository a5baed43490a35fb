"""pythae's VQVAE with `Quantizer` or `QuantizerEMA` (seen: 0.1.2).

Quirks: `forward` takes {"data": images}. The encoder, the quantizer and the decoder return a `ModelOutput` with one
name each. The quantizer takes b h w c and returns vectors as b c h w and indices as b 1 h w. `QuantizerEMA` keeps its
codebook as a buffer, replaces another buffer in each training forward, and moves the codebook after the lookup. An
encoder that gives one vector per image (the default MLP) has no grid, so three levels cannot be found in it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.types import Quantized


class PythaeQuantizer:
    """Quantizer and QuantizerEMA: quantized_vector, quantized_indices, loss."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def parse(self, z_in: Tensor, output: Any) -> Quantized:
        """Read the output; indices b 1 h w -> b h w, and the latent b h w c -> b c h w."""
        latent = z_in.movedim(-1, 1)
        return Quantized(output.quantized_vector, output.quantized_indices.squeeze(1), output.loss, latent=latent)

    def codebook(self) -> Tensor:
        """The embedding's weight, or the buffer that an EMA moves; k c."""
        table = self.module.embeddings
        return table if isinstance(table, Tensor) else table.weight


class PythaeVQVAE(HostAdapter):
    """VQVAE around any encoder and decoder that keep a grid."""

    def find_quantizer(self) -> str:
        """The quantizer's path, the same in every model of this class."""
        return "quantizer"

    def encode(self, images: Tensor) -> None:
        """Encoder and quantizer."""
        latent = self.model.encoder(images).embedding
        if latent.ndim != 4:
            raise ValueError(
                f"this encoder gives {tuple(latent.shape)}, one vector per image, and a map (b c h w) was needed: "
                "build pythae's VQVAE with a convolutional encoder="
            )
        self.model.quantizer(latent.movedim(1, -1))

    def smallest_images(self) -> Tensor:
        """One image of the size that the host was configured for."""
        size = tuple(self.model.model_config.input_dim)
        return next(self.model.parameters()).new_zeros(1, *size)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decoder(z_q).reconstruction
