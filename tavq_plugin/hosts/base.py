"""`HostAdapter`, the default adapter of a host, and the base classes of quantizer adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tavq_plugin.distributed import gather_sharded
from tavq_plugin.hosts.find_taps import find_taps
from tavq_plugin.hosts.hooks import find_module
from tavq_plugin.hosts.protocols import QuantizerAdapter
from tavq_plugin.hosts.registry import QUANTIZERS, known_quantizers, quantizer_adapter_for
from tavq_plugin.hosts.trial_run import Found, find_working, noise, run_host
from tavq_plugin.types import Quantized

LAYOUTS = ("b c h w", "b h w c", "b n c", "n b c", "b c n")


class HostAdapter:
    """The default adapter of a host, and the base class of adapters that are written for one host.

    Args:
        model: The host.
        taps: Paths of two encoder modules, fine to coarse. Default: found by one dry forward.
        quantizer: Path of the quantizer. Default: the only module whose class is in the registry.
        layout: Axis order of the tapped features, one of `LAYOUTS`; n tokens must make a square. Default: "b c h w".
        parse: Reads the quantizer: (its input, its output) -> Quantized. Default: the registry's adapter.
        example: Images the host accepts, b c h w; only their size and range matter. Default: 64×64 pixels.

    Raises:
        ValueError: The layout or the quantizer is unknown, the host holds several known quantizers, or the quantizer
            never runs.
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
        self.model: Any = model  # Any: each host has methods of its own
        self.example = example
        self._size: Tensor | None = None  # images that the host took in a dry run
        self.layout = layout or "b c h w"
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: give one of {', '.join(map(repr, LAYOUTS))}")
        self.quantizer = quantizer or self.find_quantizer()
        self._parse = parse
        self.custom_straight_through = True  # of a quantizer that `parse` reads: `wrap` observes it
        if parse is None and quantizer_adapter_for(find_module(model, self.quantizer)) is None:
            cls = type(find_module(model, self.quantizer))
            raise ValueError(
                f"no adapter reads the quantizer at {self.quantizer!r}, {cls.__module__}.{cls.__qualname__}, and its "
                "return value is never guessed: pass parse=, a function of its input and output that returns "
                "Quantized(vectors, indices, loss)"
            )
        self.taps_given = bool(taps)
        self.taps = tuple(taps) if taps else self.find_taps()

    def find_quantizer(self) -> str:
        """Path of the host's only known quantizer; ValueError if there is none, or several."""
        paths = known_quantizers(self.model)
        if len(paths) == 1:
            return paths[0]
        cls = type(self.model)
        if paths:
            raise ValueError(
                f"{cls.__qualname__} holds {len(paths)} known quantizers ({', '.join(paths)}): name the one to align "
                "in quantizer="
            )
        raise ValueError(
            f"no adapter knows {cls.__module__}.{cls.__qualname__} or any quantizer in it. Known quantizers: "
            f"{', '.join(sorted(QUANTIZERS))}. For another, pass quantizer= (its path) and parse= (a function of its "
            "input and output that returns Quantized), and taps= (two module paths of the encoder, fine to coarse) "
            "where a dry run cannot find them"
        )

    def find_taps(self) -> tuple[str, ...]:
        """Paths of two encoder modules, found by a dry run on noise."""

        def use(images: Tensor) -> tuple[str, str]:
            def run() -> None:
                run_host(self.encode, images.requires_grad_().clone())  # a clone, as the host may work in place

            return find_taps(self.model, self.quantizer, run, parse=self.parse, as_map=self._as_map)

        return self.on_working_images(use)

    @property
    def quantizer_adapter(self) -> QuantizerAdapter:
        """The adapter of the module that is at the path `quantizer` now."""
        module = find_module(self.model, self.quantizer)
        if self._parse:
            return CustomQuantizer(module, self._parse, straight_through=self.custom_straight_through)
        adapter = quantizer_adapter_for(module)
        if adapter is None:
            raise ValueError(f"no adapter reads the quantizer that is now at {self.quantizer!r}: wrap the host again")
        return adapter(module)

    @property
    def reads_by_parse(self) -> bool:
        """True if the user's `parse` reads the quantizer."""
        return self._parse is not None

    @property
    def straight_through(self) -> bool:
        """True if the quantizer passes its gradient to the latent alone; false for Gumbel."""
        return self.quantizer_adapter.straight_through

    def tokens(self, feature: Tensor, level: int) -> Tensor:
        """A tapped feature as a map; `layout` -> b c h w."""
        shaped = self._as_map(feature)
        if shaped is None:
            got = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(
                f"the feature of level {level + 1} is {got}, which does not fit layout {self.layout!r} (n must be a "
                f"square number): tap another module, or give layout=, one of {', '.join(map(repr, LAYOUTS))}"
            )
        return shaped

    def parse(self, z_in: Any, output: Any) -> Quantized:
        """The quantizer's input and raw output as `Quantized`."""
        return self.quantizer_adapter.parse(z_in, output)

    def encode(self, images: Tensor) -> None:
        """Run the whole host, as its parts are unknown here; subclasses stop after the quantizer."""
        self.model(images)

    def example_images(self) -> Tensor:
        """Noise of the size and range of the user's example, else of `smallest_images()`; on the host's device."""
        return noise(self._sizes()[0])

    def on_working_images(self, use: Callable[[Tensor], Found]) -> Found:
        """What `use` returns on noise that the host takes; see `find_working`. The size is kept."""

        def keeping(images: Tensor) -> Found:
            size = images.detach().clone()
            found = use(images)
            self._size = size
            return found

        guessed = self.example is None and type(self).smallest_images is HostAdapter.smallest_images
        return find_working(self.model, self._sizes(), keeping, other_sides=guessed)

    def _sizes(self) -> list[Tensor]:
        """Images whose size the host may take, likeliest first; the user's example alone if there is one."""
        if self._size is not None:
            return [self._size]
        if self.example is not None:
            return [self.example.detach().to(next(self.model.parameters()).device)]
        likeliest = gather_sharded(self.smallest_images())
        return [likeliest, *([] if likeliest.shape[1] == 3 else [likeliest.new_zeros(1, 3, *likeliest.shape[2:])])]

    def smallest_images(self) -> Tensor:
        """One image of 64×64 pixels, with the channels of the host's first convolution; its values do not matter."""
        first = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        return next(self.model.parameters()).new_zeros(1, first.in_channels if first else 3, 64, 64)

    def decode(self, z_q: Tensor) -> Tensor:
        """The host's own `decode`; b c h w -> b 3 h w."""
        if not callable(getattr(self.model, "decode", None)):
            raise NotImplementedError(
                f"{type(self.model).__name__} has no decode(vectors) of its own: decode by the host's own parts"
            )
        return self.model.decode(z_q)

    def codebook(self) -> Tensor | None:
        """The live codebook, k c; None where the quantizer has no explicit one."""
        return self.quantizer_adapter.codebook()

    def last_layer(self) -> Tensor | None:
        """Weight of the decoder's `conv_out`; None where there is none."""
        last = getattr(getattr(self.model, "decoder", None), "conv_out", None)
        return getattr(last, "weight", None)

    def _as_map(self, feature: Any) -> Tensor | None:
        """A feature, rearranged from `layout` to b c h w; None if its shape does not fit."""
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
    """Base class for quantizers that have an `embedding` and return what taming's return."""

    straight_through = True

    def __init__(self, module: nn.Module) -> None:
        if getattr(module, "remap", None) is not None:
            raise ValueError("this quantizer remaps its indices: build it without remap=, then wrap it")
        self.module: Any = module  # Any: each quantizer has attributes of its own

    def parse(self, z_in: Tensor, output: Any) -> Quantized:
        """taming's output (vectors, loss, (_, _, indices)) as `Quantized`."""
        vectors, loss, (_, _, indices) = output
        return self.on_grid(vectors, indices, loss)

    def codebook(self) -> Tensor:
        """The embedding's weight, k c."""
        return self.module.embedding.weight

    @staticmethod
    def on_grid(vectors: Tensor, indices: Tensor, loss: Tensor, latent: Tensor | None = None) -> Quantized:
        """`Quantized` with indices of any shape, put on the vectors' grid; b c h w, (b h w), scalar -> Quantized."""
        return Quantized(vectors, indices.reshape(len(vectors), *vectors.shape[2:]).long(), loss, latent=latent)


class CustomQuantizer:
    """The adapter of a quantizer that the user's `parse` reads; its codebook is its only k c parameter."""

    def __init__(
        self, module: nn.Module, parse: Callable[[Any, Any], Quantized], *, straight_through: bool = True
    ) -> None:
        self.module, self.parse, self.straight_through = module, parse, straight_through

    def codebook(self) -> Tensor | None:
        """The only k c parameter, parametrized or not; None if there is none, or several."""
        tables: list[Tensor] = [
            p for name, p in self.module.named_parameters() if p.ndim == 2 and "parametrizations." not in name
        ]
        for module in self.module.modules():
            if is_parametrized(module):
                names: Any = module.parametrizations
                tables += [table for name in names if (table := getattr(module, name)).ndim == 2]
        return tables[0] if len(tables) == 1 else None
