"""latent-diffusion's VQModelInterface (CompVis; seen: git a506df5).

Its VQModel has taming's structure and quantizer and needs no adapter. Quirks of the Interface: `encode` is unquantized
and `decode` quantizes, so the inherited `forward` fails; users call `decode(encode(images))`. Of both: `use_ema=True`
fails with a NameError.
"""

from __future__ import annotations

from torch import Tensor

from tavq_plugin.hosts.base import HostAdapter


class Interface(HostAdapter):
    """VQModelInterface: decode(h, force_not_quantize)."""

    def encode(self, images: Tensor) -> None:
        """Encoder and quantizer (the host's `encode` stops before it)."""
        self.model.quantize(self.model.encode(images))

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decode(z_q, force_not_quantize=True)
