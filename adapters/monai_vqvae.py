"""MONAI's VQVAE (seen: 1.6.1).

Quirks: the quantizer that returns indices, `quantizer.quantizer`, lies in one that does not. Its codebook is moved by
EMA in each training forward, after the lookup. `encode` stops before the quantizer. A volume (spatial_dims=3) is
refused: codes, taps and transport are maps, b c h w.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer
from tavq_plugin.types import Quantized


class EMAQuantizer(EmbeddingQuantizer):
    """EMAQuantizer: (z_q, loss, indices), indices b h w."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        if self.module.spatial_dims != 2:
            raise ValueError(
                f"this MONAI quantizer has spatial_dims={self.module.spatial_dims}, and maps (b c h w) were needed: "
                "volumes are not supported. Fix: train a VQVAE with spatial_dims=2 on slices"
            )

    def parse(self, z_in: Tensor, output: tuple) -> Quantized:
        """Read the quantizer's output; indices are on the grid already."""
        vectors, loss, indices = output
        return self.on_grid(vectors, indices, loss)


class MonaiVQVAE(HostAdapter):
    """VQVAE with two spatial dimensions."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        EMAQuantizer(model.get_submodule("quantizer.quantizer"))  # refuses a volume before anything runs
        super().__init__(model, **settings)

    def find_quantizer(self) -> str:
        """The quantizer's path, the same in every model of this class."""
        return "quantizer.quantizer"

    def encode(self, images: Tensor) -> None:
        """Encoder and quantizer."""
        self.model.quantize(self.model.encode(images))
