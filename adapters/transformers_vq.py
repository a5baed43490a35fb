"""transformers' Chameleon, Janus and Emu3 image tokenizers (seen: 5.24.0).

Quirks: Chameleon has neither a decoder nor a forward. Janus decodes from indices, normalised, on one fixed grid, so its
reconstruction sends no gradient to the encoder. Emu3 has no forward, repeats an image over time, and its quantizer
takes b t c h w and returns only indices, without a straight-through output or a loss. All three start in eval mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantization import with_gradient
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class VQQuantizer(EmbeddingQuantizer):
    """Chameleon's and Janus's quantizer: (z_q, loss, indices), indices flat."""

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; indices flat -> b h w."""
        vectors, loss, indices = output
        return self.on_grid(vectors, indices, loss)


class Emu3Quantizer(EmbeddingQuantizer):
    """Emu3's quantizer, b t c h w -> indices b t h w. This adapter makes the straight-through vectors."""

    def parse(self, z_in: Tensor, output: Tensor) -> Quantized:
        """Read the quantizer's output for images; ValueError for video."""
        if z_in.shape[1] != 1:
            raise ValueError(f"Emu3's quantizer got {z_in.shape[1]} time steps and needed 1: encode images, b c h w")
        latent, indices = z_in[:, 0], output[:, 0]
        vectors = rearrange(F.embedding(indices, self.codebook()), "b h w c -> b c h w")
        return Quantized(with_gradient(latent, vectors, "encoder"), indices, latent.new_zeros(()), latent=latent)


class Chameleon(HostAdapter):
    """ChameleonVQVAE: an encoder and a quantizer."""

    def find_quantizer(self) -> str:
        """The quantizer's path, the same in every model of this class."""
        return "quantize"

    def encode(self, images: Tensor) -> None:
        """The host's own `encode` quantizes."""
        self.model.encode(images)

    def smallest_images(self) -> Tensor:
        """Images of 2×2 codes, which show every level."""
        config = self.model.config
        side = 2 * 2 ** (len(config.channel_multiplier) - 1)
        return self.model.quant_conv.weight.new_zeros(1, config.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Chameleon has no decoder."""
        raise NotImplementedError("transformers' ChameleonVQVAE has no decoder: only encode() is possible")


class Janus(Chameleon):
    """JanusVQVAE: its decoder reads normalised vectors."""

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decoder(self.model.post_quant_conv(F.normalize(z_q, dim=1)))


class Emu3(Chameleon):
    """Emu3VQVAE on images; features are averaged over the repetitions of an image in time."""

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """A tapped feature as a map; (b t) c h w -> b c h w."""
        return reduce(feature, "(b t) c h w -> b c h w", "mean", t=self.model.config.temporal_downsample_factor)

    def encode(self, images: Tensor) -> None:
        """The host's own `encode`, which needs the images' sizes."""
        size = torch.tensor(images.shape[-2:], device=images.device)
        self.model.encode(images, image_sizes=size.expand(len(images), 2))

    def smallest_images(self) -> Tensor:
        """Images of 2×2 codes, which show every level."""
        side = 2 * self.model.vision_spatial_factor
        parameter = next(self.model.parameters())
        return parameter.new_zeros(1, self.model.config.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; the decoder also reads them in its norms; b c h w -> b 3 h w."""
        z_q = z_q[:, None]
        hidden = self.model.post_quant_conv(rearrange(z_q, "b t c h w -> b c t h w"))
        video = self.model.decoder(rearrange(hidden, "b c t h w -> b t c h w"), z_q)
        return rearrange(video, "(b t) c h w -> b t c h w", b=len(z_q))[:, 0]
