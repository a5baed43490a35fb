"""Any host: a quantizer whose class is known or that `parse=` reads, and taps that are given or found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tavq_plugin.hosts.find_taps import find_taps
from tavq_plugin.hosts.hooks import find_module
from tavq_plugin.hosts.protocols import QuantizerAdapter
from tavq_plugin.hosts.registry import QUANTIZERS, known_quantizers, quantizer_adapter_for
from tavq_plugin.types import Quantized

LAYOUTS = ("b c h w", "b h w c", "b n c", "n b c", "b c n")


class HostAdapter:
    """A host without an adapter of its own, and what adapters of default shape descend from.

    layout: how its tapped features lie (square where flat). example: images it takes, b c h w; by default one of
    64 px. Raises ValueError where the quantizer is unknown, is one of several, or never runs.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        taps: Sequence[str] | None = None,
        quantizer: str | None = None,
        layout: str | None = None,
        parse: Callable[[Any, Any], Quantized] | None = None,
        example: Tensor | None = None,
    ) -> None:
        self.model, self.example = model, example
        self.layout = layout or "b c h w"
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: give one of {', '.join(map(repr, LAYOUTS))}")
        self.quantizer = quantizer or self.find_quantizer()
        self._parse = parse
        if parse is None and quantizer_adapter_for(find_module(model, self.quantizer)) is None:
            cls = type(find_module(model, self.quantizer))
            raise ValueError(
                f"no adapter reads the quantizer at {self.quantizer!r}, {cls.__module__}.{cls.__qualname__}, and its "
                "return value is never guessed: pass parse=, its input and output -> Quantized(vectors, indices, loss)"
            )
        self.taps = tuple(taps) if taps else self.find_taps()

    def find_quantizer(self) -> str:
        """The path of the only module whose class is a known quantizer's."""
        paths = known_quantizers(self.model)
        if len(paths) == 1:
            return paths[0]
        cls = type(self.model)
        if paths:
            raise ValueError(
                f"{cls.__qualname__} holds {len(paths)} known quantizers ({', '.join(paths)}): say which one the "
                "alignment reads, quantizer="
            )
        raise ValueError(
            f"no adapter knows {cls.__module__}.{cls.__qualname__} or any quantizer in it. Known quantizers: "
            f"{', '.join(sorted(QUANTIZERS))}. For another, pass quantizer= (its path) and parse= (its input and "
            "output -> Quantized), and taps= (two module paths of the encoder, fine → mid) where a dry run cannot "
            "find them"
        )

    def find_taps(self) -> tuple[str, ...]:
        """Taps by a dry run on the example."""

        def run() -> None:
            self.encode(self.probe().requires_grad_().clone())  # a clone, as the host may work in place

        return find_taps(self.model, self.quantizer, run, parse=self.parse, as_map=self._as_map)

    @property
    def reading(self) -> QuantizerAdapter:
        """How the live quantizer is read."""
        module = find_module(self.model, self.quantizer)
        return CustomQuantizer(module, self._parse) if self._parse else quantizer_adapter_for(module)(module)

    @property
    def straight_through(self) -> bool:
        """As the quantizer's reading says."""
        return self.reading.straight_through

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """A tapped feature as a map; `layout` -> b c h w."""
        shaped = self._as_map(feature)
        if shaped is None:
            got = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(
                f"the feature of level {level + 1} is {got}, no {self.layout!r} (square where flat): tap another "
                f"module, or give layout=, one of {', '.join(map(repr, LAYOUTS))}"
            )
        return shaped

    def parse(self, z_in: Any, output: Any) -> Quantized:
        """As the quantizer's reading says."""
        return self.reading.parse(z_in, output)

    def encode(self, images: Tensor) -> None:
        """The whole host: nothing is known of its parts."""
        self.model(images)

    def probe(self) -> Tensor:
        """The example, or else the smallest images worth running, on the host's device; b c h w."""
        if self.example is None:
            return self.smallest()
        return self.example.detach().to(next(self.model.parameters()).device).clone()

    def smallest(self) -> Tensor:
        """One 64 px image with the channels of the host's first convolution."""
        first = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        return next(self.model.parameters()).new_zeros(1, first.in_channels if first else 3, 64, 64)

    def decode(self, z_q: Tensor) -> Tensor:
        """The host's own `decode`; b c h w -> b 3 h w."""
        return self.model.decode(z_q)

    def codebook(self) -> Tensor | None:
        """As the quantizer's reading says; k c."""
        return self.reading.codebook()

    def last_layer(self) -> Tensor | None:
        """Weight of the decoder's `conv_out` where it has one."""
        last = getattr(getattr(self.model, "decoder", None), "conv_out", None)
        return getattr(last, "weight", None)

    def _as_map(self, feature: Any) -> Tensor | None:
        axes = self.layout.split()
        if not isinstance(feature, Tensor) or feature.ndim != len(axes):
            return None
        if "n" not in axes:
            return rearrange(feature, f"{self.layout} -> b c h w")
        side = isqrt(feature.shape[axes.index("n")])
        if side**2 != feature.shape[axes.index("n")]:
            return None
        return rearrange(feature, f"{self.layout.replace('n', '(h w)')} -> b c h w", h=side)


class EmbeddingQuantizer:
    """What readings descend from whose quantizer looks an `embedding` up and gives its indices flat."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        if getattr(module, "remap", None) is not None:
            raise ValueError("this quantizer remaps its indices (remap=): build it without, then wrap it")
        self.module = module

    def codebook(self) -> Tensor:
        """The embedding, k c."""
        return self.module.embedding.weight

    def from_flat(self, vectors: Tensor, indices: Tensor, loss: Tensor) -> Quantized:
        """Indices of any shape take the grid's; b c h w, (b h w), scalar -> Quantized."""
        return Quantized(vectors, indices.view(len(vectors), *vectors.shape[2:]), loss)


class CustomQuantizer:
    """A quantizer that its user's `parse=` reads; its codebook is its only k c parameter, parametrized or not."""

    straight_through = True

    def __init__(self, module: nn.Module, parse: Callable[[Any, Any], Quantized]) -> None:
        self.module, self.parse = module, parse

    def codebook(self) -> Tensor | None:
        """The only k c parameter, or None where there is none or several."""
        tables = [p for name, p in self.module.named_parameters() if p.ndim == 2 and "parametrizations." not in name]
        for module in self.module.modules():
            if is_parametrized(module):
                tables += [table for name in module.parametrizations if (table := getattr(module, name)).ndim == 2]
        return tables[0] if len(tables) == 1 else None
