"""`wrap` and `Tokenizer`: codes of three levels from a host that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.distributed import gather_sharded, is_sharded, require_synchronized, unwrap
from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.hooks import Capture, Recorder, require_gradient, tapped
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.registry import adapter_for
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.types import Codes, GradTo, Quantized


class Tokenizer(nn.Module):
    """A host and the levels the plug-in adds; images -> (host output, Codes).

    Hooks stand only while a call runs. `host` is the user's own object; `hierarchy` holds what is new.
    """

    def __init__(self, adapter: Adapter, hierarchy: Hierarchy, code_width: int) -> None:
        super().__init__()
        self.host, self.hierarchy = adapter.model, hierarchy
        self.adapter, self.code_width = adapter, code_width

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Codes]:
        """The host's own forward, and the codes of every level."""
        require_synchronized(self.hierarchy, "tokenizer")
        with tapped(self.host, at=tapped_paths(self.adapter)) as recorder:
            output = self.host(images, *args, **kwargs)
        seen = recorder.take()
        if torch.is_grad_enabled():
            require_gradient(seen)
        return output, codes_from(self.adapter, self.hierarchy, seen)

    def encode(self, images: Tensor) -> Codes:
        """Images to codes; the decoder does not run."""
        with tapped(self.host, at=tapped_paths(self.adapter)) as recorder:
            self.adapter.encode(images)
        return codes_from(self.adapter, self.hierarchy, recorder.take())

    def decode(self, codes: Codes) -> Tensor:
        """Images from the last level alone; Codes -> b 3 h w."""
        return self.adapter.decode(codes.final.quantized)

    def send_gradient(self, grad_to: GradTo) -> None:
        """From now on a loss on the codes sends its gradient there; ValueError where the host makes it impossible."""
        self.hierarchy.grad_to = _grad_to(grad_to, gather_sharded(self.adapter.codebook()))


@renamed_arguments(beside="detach_added_levels")
def wrap(
    host: nn.Module,
    *,
    taps: Sequence[str] | None = None,
    quantizer: str | None = None,
    layout: str | None = None,
    parse: Callable[[Any, Any], Quantized] | None = None,
    example: Tensor | None = None,
    grad_to: GradTo | None = None,
    codebook: str = "shared",
    codebook_size: int | None = None,
    max_grid: int = 64,
    detach_added_levels: bool = False,
) -> Tokenizer:
    """A tokenizer with codes of three levels around a host whose code, weights and state dict stay as they are.

    A known host, or any host around one known quantizer, needs no more. For others: quantizer, its path; parse,
    (its input, its output) -> Quantized; taps, two module paths, fine → mid, where a dry run does not find them;
    layout, how tapped features lie ("b c h w", "b n c", …); example, images to try the host on, where 64 px are
    not to its liking. grad_to: where a loss on the codes sends its gradient, "encoder", "codebook" or "both" (the
    default where the codebook learns by gradient; else, as under EMA, "encoder"). codebook: levels 1–2 look up the
    host's ("shared") or have their own ("own", codebook_size codes each); a grid of more than `max_grid` a side is
    pooled first. detach_added_levels: levels 1–2 learn without sending gradient to the host.

    Raises ValueError for an unknown quantizer, a wrong path, a tap that never fires or is changed in place, a latent
    whose width differs from the codebook, or a codebook that no gradient can reach where `grad_to` asks for it.
    Draws no random number from the global stream.
    """
    if unwrap(host) is not host:
        raise ValueError(
            f"wrap(host) came with the host inside {type(host).__name__}: wrap the host itself, then put the tokenizer "
            "in DistributedDataParallel or torch.compile; or use attach, which hooks the host where it is"
        )
    with eval_without_trace(host):
        adapter = _adapter(host, taps=taps, quantizer=quantizer, layout=layout, parse=parse, example=example)
        with tapped(host, at=tapped_paths(adapter)) as recorder:
            # a sharded host gathers its parameters in its own forward alone
            (host if is_sharded(host) else adapter.encode)(gather_sharded(adapter.probe()))
        seen = _take_or_raise_value_error(recorder)
        call = seen[adapter.quantizer]
        final = adapter.parse(call.z_in, call.output)
        features = [adapter.tokens(seen[path].output, level) for level, path in enumerate(adapter.taps)]
        width = final.vectors.shape[1]
        with torch.enable_grad():
            table = gather_sharded(adapter.codebook())
        if table is not None and table.shape[1] != width:
            raise ValueError(
                f"the quantizer's vectors have width {width} and its codebook {table.shape[1]} (k c = "
                f"{tuple(table.shape)}): the path in quantizer= or parse= does not fit this host"
            )
        if codebook == "own" and codebook_size is None and table is not None:
            codebook_size = len(table)
        hierarchy = Hierarchy(
            [feature.shape[1] for feature in features],
            width,
            codebook=codebook,
            codebook_size=codebook_size,
            grad_to=_grad_to(grad_to, table),
            straight_through=adapter.straight_through,
            max_grid=max_grid,
            detach_added_levels=detach_added_levels,
        ).to(final.vectors.device)
        hierarchy(features, call.z_in, final, table)
    return Tokenizer(adapter, hierarchy, width)


def _adapter(host: nn.Module, **description: Any) -> Adapter:
    try:
        return (adapter_for(host) or HostAdapter)(host, **description)
    except ValueError:
        raise
    except Exception as error:
        error.add_note("this came from a dry run of the host: give example=, a batch of images it takes, b c h w")
        raise


def _grad_to(asked: GradTo | None, table: Tensor | None) -> GradTo:
    learns = table is not None and table.requires_grad
    if asked in ("codebook", "both") and table is not None and not learns:
        raise ValueError(
            f'grad_to="{asked}" is impossible on this host: its codebook takes no gradient (moved by EMA, constant, '
            'or frozen); give "encoder", or leave grad_to= out'
        )
    return asked or ("both" if learns else "encoder")


def tapped_paths(adapter: Adapter) -> tuple[str, ...]:
    """Paths of the modules whose calls are recorded: the taps, then the quantizer."""
    return (*adapter.taps, adapter.quantizer)


def codes_from(adapter: Adapter, hierarchy: Hierarchy, seen: dict[str, Capture]) -> Codes:
    """Codes of every level, from what one forward of the host left at its taps and its quantizer."""
    call = seen[adapter.quantizer]
    features = [adapter.tokens(seen[path].output, level) for level, path in enumerate(adapter.taps)]
    return hierarchy(features, call.z_in, adapter.parse(call.z_in, call.output), gather_sharded(adapter.codebook()))


def _take_or_raise_value_error(recorder: Recorder) -> dict[str, Capture]:
    try:
        return recorder.take()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
