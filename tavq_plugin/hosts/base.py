"""`HostAdapter`, the default adapter of a host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from tavq_plugin.distributed import gather_sharded, is_sharded
from tavq_plugin.hosts.call_sites import find_callee, find_module, holding_module, split_number
from tavq_plugin.hosts.find_table import FoundTable, TableForm, can_be_looked_up, find_table, matches
from tavq_plugin.hosts.find_taps import find_taps
from tavq_plugin.hosts.host_functions import HostFunction, HostTable
from tavq_plugin.hosts.protocols import QuantizerAdapter
from tavq_plugin.hosts.quantizer_adapters import CustomQuantizer
from tavq_plugin.hosts.quantizer_candidates import Candidates, quantizer_candidates
from tavq_plugin.hosts.registry import QUANTIZERS, known_quantizers, quantizer_adapter_for
from tavq_plugin.hosts.restored import restored
from tavq_plugin.hosts.trial_run import Found, HostReading, find_working, noise, run_host
from tavq_plugin.types import Quantized

LAYOUTS = ("b c h w", "b h w c", "b n c", "n b c", "b c n")


class HostAdapter:
    """The default adapter of a host, and the base class of adapters that are written for one host.

    Args:
        model: The host.
        taps: Paths of two encoder modules, fine to coarse. Default: found by one dry forward.
        quantizer: Path of the quantizer's module, method or function. Default: the only module whose class is in the
            registry.
        layout: Axis order of the tapped features, one of `LAYOUTS`; n tokens must make a square. Default: "b c h w".
        parse: Reads the quantizer: (its input, its output), and the module if it takes three arguments, -> Quantized.
            Default: the registry's adapter.
        example: Images the host accepts, b c h w; only their size and range matter. Default: 64×64 pixels.
        codebook: Path of the table, or a function of the host that gives it, k c. Default: the quantizer adapter's.
        encode: Runs the host through its quantizer: a method's name, or a function of images. Default: `forward`.
        decode: Quantized map -> image; a method's name or a function. Default: the host's `decode`.
        forward: Runs the whole host: a method's name, or a function of images. Default: the host itself.
        tokens: Images -> the host's own tokens: a method's name, or a function. Default: the quantizer's indices.
        decode_tokens: The host's own tokens -> images, likewise. Default: `decode` of the codebook's rows.

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
        parse: Callable[..., Quantized] | None = None,
        example: Tensor | None = None,
        codebook: str | Callable[[nn.Module], Tensor] | None = None,
        encode: str | Callable[..., Any] | None = None,
        decode: str | Callable[..., Tensor] | None = None,
        forward: str | Callable[..., Any] | None = None,
        tokens: str | Callable[..., Tensor] | None = None,
        decode_tokens: str | Callable[..., Tensor] | None = None,
    ) -> None:
        self.model: Any = model  # Any: each host has methods of its own
        given: dict[str, Any] = {
            "taps": taps,
            "quantizer": quantizer,
            "layout": layout,
            "parse": parse,
            "example": example,
        }
        given |= {"codebook": codebook, "encode": encode, "decode": decode, "forward": forward}
        given |= {"tokens": tokens, "decode_tokens": decode_tokens}
        self.settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.given_forward = None if forward is None else HostFunction(model, forward, "forward")
        self.given = frozenset(
            name
            for name, value in (("codebook", codebook), ("encode", encode), ("decode", decode))
            if value is not None
        )
        # what the user gives comes before the methods of this class and its subclasses
        if encode is not None:
            vars(self)["encode"] = HostFunction(model, encode, "encode")
        if decode is not None:
            vars(self)["decode"] = HostFunction(model, decode, "decode")
        if tokens is not None:
            vars(self)["own_tokens"] = HostFunction(model, tokens, "tokens")
        if decode_tokens is not None:
            vars(self)["decode_own_tokens"] = HostFunction(model, decode_tokens, "decode_tokens")
        if codebook is not None:
            vars(self)["codebook"] = HostTable(model, codebook)
        self.example = example
        self._size: Tensor | None = None  # images that the host took in a dry run
        self.layout, self.layout_given = layout or LAYOUTS[0], layout is not None
        self._no_maps: set[str] = set()  # paths of modules that a check found to be no feature maps
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: give one of {', '.join(map(repr, LAYOUTS))}")
        self.quantizer = quantizer or self.find_quantizer()
        self._parse = parse
        self.custom_straight_through = True  # of a quantizer that `parse` reads: `wrap` observes it
        self.found_table: FoundTable | None = None  # of such a quantizer, if `wrap` found another than its only matrix
        if parse is None and quantizer_adapter_for(holding_module(model, self.quantizer)) is None:
            cls = type(holding_module(model, self.quantizer))
            raise ValueError(
                f"no adapter reads the quantizer at {self.quantizer!r}, {cls.__module__}.{cls.__qualname__}, and its "
                "return value is never guessed: pass parse=, a function of its input and output that returns "
                "Quantized(vectors, indices, loss)"
            )
        self.taps_given = bool(taps)
        no_modules = [path for path in taps or () if find_callee(model, path) is not None]
        if no_modules:
            raise ValueError(f"taps= got {no_modules[0]!r}, a method: name two modules of the encoder, fine to coarse")
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
        candidates = self._quantizer_candidates()
        such_as = f", here perhaps {candidates.likeliest!r}" if candidates.likeliest else ""
        raise ValueError(
            f"no adapter knows {cls.__module__}.{cls.__qualname__} or any quantizer in it: pass quantizer= (its path"
            f"{such_as}) and parse= (a function of its input and output that returns Quantized), and taps= (two module "
            f"paths of the encoder, fine to coarse) where a dry run cannot find them. {candidates.sentences}. Known "
            f"quantizers: {', '.join(sorted(QUANTIZERS))}"
        )

    def _quantizer_candidates(self) -> Candidates:
        """What looks like a quantizer in this host, by a dry run that leaves no trace, else by names alone."""
        if is_sharded(self.model):
            return quantizer_candidates(self.model)._replace(not_run="A sharded host is not run")

        def use(images: Tensor) -> Candidates:
            return quantizer_candidates(self.model, lambda: run_host(self.encode, images))

        try:
            with restored(self.model):
                return self.on_working_images(use)
        except Exception as error:  # the host may raise anything, and the error that names the fix comes first
            reason = f"A dry run fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            return quantizer_candidates(self.model)._replace(not_run=reason)

    def find_taps(self) -> tuple[str, ...]:
        """Paths of two encoder modules, found by a dry run on noise.

        Where no layout was given and no map is b c h w, tokens are tried: b n c.
        """

        def use(images: Tensor) -> tuple[str, str]:
            def run() -> None:
                run_host(self.encode, images.requires_grad_().clone())  # a clone, as the host may work in place

            return find_taps(
                self.model, self.quantizer, run, parse=self.parse, as_map=self._as_map, excluded=self._no_maps
            )

        try:
            return self.on_working_images(use)
        except ValueError as error:
            if self.layout_given or self.layout != LAYOUTS[0]:
                raise
            self.layout = "b n c"
            try:
                return self.on_working_images(use)
            except ValueError:
                self.layout = LAYOUTS[0]
                raise error from None

    def try_other_taps(self, wrong: str) -> bool:
        """Look for other taps than a module that is no feature map, and those like it; whether there are any.

        Those like it have the same class and the same name in another block. If False, the taps are as before.
        """
        kind, name = type(find_module(self.model, wrong)), split_number(wrong)[0].rpartition(".")[2]
        before = self.taps
        self._no_maps |= {
            path
            for path, module in self.model.named_modules()
            if type(module) is kind and path.rpartition(".")[2] == name
        }
        try:
            self.taps = self.find_taps()
        except ValueError:
            self.taps = before
        return self.taps != before

    @property
    def quantizer_adapter(self) -> QuantizerAdapter:
        """The adapter of the module that is at the path `quantizer` now."""
        module = holding_module(self.model, self.quantizer)
        if self._parse:
            straight = self.custom_straight_through
            return CustomQuantizer(module, self._parse, straight_through=straight, found=self.found_table)
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
        (self.given_forward or self.model)(images)

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
                f"{type(self.model).__name__} has no decode(vectors) of its own: give decode=, a function of the "
                "quantized map that returns the image, such as decode=lambda z_q, host: host.decoder(z_q)"
            )
        return self.model.decode(z_q)

    def codebook(self) -> Tensor | None:
        """The live codebook, k c; None where the quantizer has no explicit one."""
        return self.quantizer_adapter.codebook()

    def find_table(self, reading: HostReading) -> bool:
        """Look for the table that one run of the host looked up, if it is not the expected one; whether it was found.

        With an adapter for the quantizer's class, or a function in codebook=, nothing is looked for.
        """
        final, given = reading.final, vars(self).get("codebook")
        if not can_be_looked_up(final):
            return False
        module = holding_module(self.model, self.quantizer)
        if given is not None:
            return given.find_form(module, reading)
        if not self.reads_by_parse:
            return False
        table = reading.table
        if table is not None and matches(TableForm(), table, module, reading):
            return False
        self.found_table = find_table(module, reading)
        return self.found_table is not None

    @property
    def table_name(self) -> str:
        """What was found to be the codebook, or what the user named, for a summary; empty if it is the expected one."""
        given = vars(self).get("codebook")
        return str(given) if given is not None else str(self.found_table or "")

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
