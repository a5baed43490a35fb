"""taming-transformers (CompVis; seen: taming-transformers-rom1504 0.0.6, taming-transformers 0.0.1).

Quirks: the quantizer returns (z_q, loss, (_, _, indices)) with indices flat, (N, 1) or b h w. `down.i` and `mid` are
containers that are never called, so hooks on them never fire. GumbelQuantize passes gradient to its codebook by itself
and is random even in eval mode. `legacy=True` puts β on the codebook's term. `taming.models.vqgan` does not import
with Lightning 2 (see `enable_legacy_imports`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.instantiate import instantiate
from tavq_plugin.hosts.quantizer_adapters import EmbeddingQuantizer


class TamingQuantizer(EmbeddingQuantizer):
    """VectorQuantizer, VectorQuantizer2, GumbelQuantize: (z_q, loss, (_, _, indices)), indices of any shape."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.straight_through = not hasattr(module, "embed")

    def codebook(self) -> Tensor:
        """`embedding` of the VQ kinds, `embed` of the Gumbel kind; k c."""
        return (self.module.embedding if self.straight_through else self.module.embed).weight


class TamingVQGAN(HostAdapter):
    """CompVis VQModel, GumbelVQ and their subclasses, with any known quantizer."""

    def find_quantizer(self) -> str:
        """The quantizer's path, the same in every model of this class."""
        return "quantize"

    def find_taps(self) -> tuple[str, ...]:
        """The last module at each of the two resolutions above the code grid."""
        down = self.model.encoder.down
        if len(down) < 3:
            raise ValueError(
                f"this encoder has {len(down)} resolutions and three levels need 3: name two modules in taps=, "
                "fine to mid"
            )
        return tuple(
            f"encoder.down.{i}.{'attn' if len(down[i].attn) else 'block'}.{len(down[i].block) - 1}"
            for i in (len(down) - 3, len(down) - 2)
        )

    def encode(self, images: Tensor) -> None:
        """Encoder, 1×1 convolution and quantizer."""
        self.model.quantize(self.model.quant_conv(self.model.encoder(images)))

    def smallest_images(self) -> Tensor:
        """Images of 2×2 codes, which show every level."""
        side = 2 * 2 ** (len(self.model.encoder.down) - 1)
        return self.model.quant_conv.weight.new_zeros(1, self.model.encoder.in_channels, side, side)

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.model.decoder(self.model.post_quant_conv(z_q))


class VQGAN(nn.Module):
    """taming's VQModel (kind="vq") or GumbelVQ (kind="gumbel") without Lightning; b 3 h w -> (b 3 h w, loss).

    It is built from taming's modules, under taming's names: except for `loss.*` keys, the state dict of one loads
    strictly into the other.

    Args:
        ddconfig: taming's configuration of encoder and decoder.
        n_embed: Number of codes.
        embed_dim: Width of a code.
        kind: "vq", "gumbel", or "first" (taming's first VectorQuantizer, the only one in taming-transformers 0.0.1).
        beta: Weight β of the commitment term (not for "gumbel").
        legacy: If false, β is on the commitment term, else on the codebook's; for "vq" only.
        kl_weight: Weight of the KL term, for "gumbel" only.

    Raises:
        ImportError: taming is not installed.
        ValueError: `kind` is unknown.
    """

    def __init__(
        self,
        ddconfig: dict[str, Any],
        n_embed: int,
        embed_dim: int,
        *,
        kind: str = "vq",
        beta: float = 0.25,
        legacy: bool = True,
        kl_weight: float = 5e-4,
    ) -> None:
        super().__init__()
        try:
            from taming.modules.diffusionmodules.model import Decoder, Encoder
            from taming.modules.vqvae import quantize
        except ImportError as error:
            raise ImportError(f'taming is not importable ({error}): pip install "tavq-plugin[taming]"') from error

        with redirect_stdout(None):  # taming's Decoder prints the shape of its input
            self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        z_channels = ddconfig["z_channels"]
        if kind in ("vq", "first"):
            self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
            if kind == "vq":
                self.quantize = quantize.VectorQuantizer2(n_embed, embed_dim, beta=beta, legacy=legacy)
            else:
                self.quantize = quantize.VectorQuantizer(n_embed, embed_dim, beta=beta)
        elif kind == "gumbel":
            self.quantize = quantize.GumbelQuantize(z_channels, embed_dim, n_embed=n_embed, kl_weight=kl_weight)
            self.quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        else:
            raise ValueError(f'kind={kind!r}: give "vq", "first" or "gumbel"')
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def encode(self, images: Tensor) -> tuple:
        """Images to taming's quantizer output; b 3 h w -> (b c h w, loss, info)."""
        return self.quantize(self.quant_conv(self.encoder(images)))

    def decode(self, z_q: Tensor) -> Tensor:
        """Quantized vectors to images; b c h w -> b 3 h w."""
        return self.decoder(self.post_quant_conv(z_q))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and quantizer loss; b 3 h w -> (b 3 h w, scalar)."""
        z_q, loss, _ = self.encode(images)
        return self.decode(z_q), loss


def _instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """Build a configuration's `target` with its `params`; `instantiate` refuses what could run code."""
    if "target" not in config:
        raise ValueError(f"{config!r} has no target: give one, a class as package.module.Class, and params")
    return instantiate(config["target"], config.get("params") or {})


@contextmanager
def enable_legacy_imports() -> Iterator[None]:
    """Make `taming.models.vqgan` importable on today's Lightning inside a `with` block.

    Modules `main` and `taming.main` with an `instantiate_from_config` replace the originals, which need
    `pytorch_lightning.utilities.distributed`, which no longer exists. They are removed at the end, also on error. What
    was imported inside keeps working; a `target:` that it builds may name only what `tavq_plugin.hosts.instantiate`
    accepts.
    """
    import taming

    names = ("main", "taming.main")
    absent = object()
    before = {name: sys.modules.get(name, absent) for name in names}
    attribute = getattr(taming, "main", absent)
    for name in names:
        stand_in = ModuleType(name)
        stand_in.instantiate_from_config = _instantiate_from_config
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name, module in before.items():
            if module is absent:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        if attribute is absent:
            vars(taming).pop("main", None)
        else:
            taming.main = attribute
