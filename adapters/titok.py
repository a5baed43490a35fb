"""TiTok (bytedance/1d-tokenizer; seen: git 942a96f).

Quirks: latents are 1 × n, not a map of the image. The encoder's layers return n b c: the class token, the patches, the
latents. Levels 1 and 2 are the patches' map after a third and two thirds of the layers. The loss is a dict of a total
and its parts. `finetune_decoder=True`, the default, runs the encoder without gradient.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class TiTokQuantizer(EmbeddingQuantizer):
    """VectorQuantizer: (z_q, dict)."""

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Vectors b c 1 n, indices b 1 n."""
        vectors, report = output
        latent = F.normalize(z_in, dim=1) if self.module.use_l2_norm else z_in
        return Quantized(vectors, report["min_encoding_indices"], report["quantizer_loss"], latent=latent)

    def codebook(self) -> Tensor:
        """The embedding, normalised if the host normalises it; k c."""
        table = self.module.embedding.weight
        return F.normalize(table, dim=-1) if self.module.use_l2_norm else table


class TiTok(HostAdapter):
    """TiTok in its first stage."""

    def find_taps(self) -> tuple[str, ...]:
        """Layers after a third and two thirds of the depth; ValueError if the encoder gets no gradient."""
        if self.model.finetune_decoder:
            raise ValueError(
                "TiTok with finetune_decoder=True runs its encoder without gradient, so no alignment can train it: "
                "build it with finetune_decoder: False, its first stage"
            )
        n = self.model.encoder.num_layers
        return (f"encoder.transformer.{n // 3 - 1}", f"encoder.transformer.{2 * n // 3 - 1}")

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """The patches among a layer's tokens; n b c -> b c h w."""
        grid = self.model.encoder.grid_size
        return rearrange(feature[1 : 1 + grid**2], "(h w) b c -> b c h w", h=grid)

    def smallest_images(self) -> Tensor:
        """One image of the only size the host accepts."""
        side = self.model.encoder.image_size
        return self.model.latent_tokens.new_zeros(1, 3, side, side)
