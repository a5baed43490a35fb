"""wrap, attach, detach: taps, hierarchy and alignment on a host that is left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.types import Adapter, Codes, GradTo, Quantized, TextBatch
from tavq_plugin.distributed import at_rest, bare, is_sharded, own_randomness, refuse_out_of_step, whole
from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.base import Host
from tavq_plugin.hosts.registry import adapter_for
from tavq_plugin.hosts.hooks import Recorder, Seen, install, refuse_blind, tapped


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
        refuse_out_of_step(self.hierarchy, "tokenizer")
        with tapped(self.host, at=_paths(self.adapter)) as recorder:
            output = self.host(images, *args, **kwargs)
        seen = recorder.take()
        if torch.is_grad_enabled():
            refuse_blind(seen)
        return output, _codes(self.adapter, self.hierarchy, seen)

    def encode(self, images: Tensor) -> Codes:
        """Images to codes; the decoder does not run."""
        with tapped(self.host, at=_paths(self.adapter)) as recorder:
            self.adapter.encode(images)
        return _codes(self.adapter, self.hierarchy, recorder.take())

    def decode(self, codes: Codes) -> Tensor:
        """Images from the last level alone; Codes -> b 3 h w."""
        return self.adapter.decode(codes.final.quantized)

    def send_gradient(self, grad_to: GradTo) -> None:
        """From now on a loss on the codes sends its gradient there; ValueError where the host makes it impossible."""
        self.hierarchy.grad_to = _grad_to(grad_to, whole(self.adapter.codebook()))


class Attachment(nn.Module):
    """Taps on a host that others run, and the weighted loss of its latest forward; texts -> scalar.

    Its state dict holds the plug-in's own parameters and nothing of the host. `codes` keeps the latest levels,
    `last` the diagnostics. `weight` may be changed between steps; at 0 nothing is recorded or computed.
    """

    def __init__(
        self,
        adapter: Adapter,
        hierarchy: Hierarchy,
        alignment: TextAlignment,
        *,
        weight: float,
        level_weight: float,
    ) -> None:
        super().__init__()
        self.hierarchy, self.alignment = hierarchy, alignment
        self.adapter = adapter
        self.recorder = Recorder(_paths(adapter))
        self.weight, self.level_weight = weight, level_weight
        self.codes: Codes | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._handles = install(adapter.model, self.recorder)

    @property
    def last(self) -> Mapping[str, Tensor]:
        """Diagnostics of the latest call, each computed when it is read."""
        return self.alignment.last

    @property
    def weight(self) -> float:
        """λ: the weight of the alignment in the returned scalar."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"weight must be 0 or more, got {value}")
        self._weight = value
        self.recorder.live = value > 0

    def forward(self, texts: TextBatch | Sequence[str] | Sequence[int]) -> Tensor:
        """weight · alignment + level_weight · (added levels' loss), of the host's latest forward.

        Raises RuntimeError where there was no forward since the last call, or it ran without gradient.
        """
        refuse_out_of_step(self, "align")
        if self.weight == 0:
            return torch.zeros((), device=next(self.parameters()).device)
        seen = self.recorder.take()
        refuse_blind(seen)
        self.codes = _codes(self.adapter, self.hierarchy, seen)
        if not self.codes.final.latent.requires_grad:
            raise RuntimeError(
                "the captured latent carries no gradient (a frozen encoder, or reentrant checkpointing): "
                "use torch.utils.checkpoint with use_reentrant=False, or unfreeze the encoder"
            )
        return self.weight * self.alignment(self.codes, texts) + self.level_weight * self.codes.loss

    def release(self) -> None:
        """Undo everything on the host and in the optimizer; what `tavq.detach` calls."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.recorder.live = False
        self.recorder.seen = {}
        if self._optimizer is not None:
            mine = {id(p) for p in self.parameters()}
            groups = self._optimizer.param_groups
            groups[:] = [group for group in groups if not any(id(p) in mine for p in group["params"])]
            for parameter in self.parameters():
                self._optimizer.state.pop(parameter, None)
            self._optimizer = None


_attached: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()


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
    beside: bool = False,
) -> Tokenizer:
    """A tokenizer with codes of three levels around a host whose code, weights and state dict stay as they are.

    A known host, or any host around one known quantizer, needs no more. For others: quantizer, its path; parse,
    (its input, its output) -> Quantized; taps, two module paths, fine → mid, where a dry run does not find them;
    layout, how tapped features lie ("b c h w", "b n c", …); example, images to try the host on, where 64 px are
    not to its liking. grad_to: where a loss on the codes sends its gradient, "encoder", "codebook" or "both" (the
    default where the codebook learns by gradient; else, as under EMA, "encoder"). codebook: levels 1–2 look up the
    host's ("shared") or have their own ("own", codebook_size codes each); a grid of more than `max_grid` a side is
    pooled first. beside: levels 1–2 learn beside the host, without gradient to it.

    Raises ValueError for an unknown quantizer, a wrong path, a tap that never fires or is changed in place, a latent
    whose width differs from the codebook, or a codebook that no gradient can reach where `grad_to` asks for it.
    Draws no random number from the global stream.
    """
    if bare(host) is not host:
        raise ValueError(
            f"wrap(host) came with the host inside {type(host).__name__}: wrap the host itself, then put the tokenizer "
            "in DistributedDataParallel or torch.compile; or use attach, which hooks the host where it is"
        )
    with at_rest(host):
        adapter = _adapter(host, taps=taps, quantizer=quantizer, layout=layout, parse=parse, example=example)
        with tapped(host, at=_paths(adapter)) as recorder:
            # a sharded host gathers its parameters in its own forward alone
            (host if is_sharded(host) else adapter.encode)(whole(adapter.probe()))
        seen = _refusing_at_the_door(recorder)
        call = seen[adapter.quantizer]
        final = adapter.parse(call.z_in, call.output)
        features = [adapter.tokens(seen[path].output, level) for level, path in enumerate(adapter.taps)]
        width = final.vectors.shape[1]
        with torch.enable_grad():
            table = whole(adapter.codebook())
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
            beside=beside,
        ).to(final.vectors.device)
        hierarchy(features, call.z_in, final, table)
    return Tokenizer(adapter, hierarchy, width)


def attach(
    host: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    weight: float = 0.3,
    level_weight: float = 1.0,
    text_dim: int | None = None,
    encoder: Any = None,
    store: Any = None,
    alignment: dict[str, Any] | None = None,
    **wrapping: Any,
) -> Attachment:
    """The loss for training code that must not change: hooks on the host, new parameters in the optimizer.

    Call it after the optimizer is built and before its state or a schedule is; then add `align(texts)` to the
    generator's loss, after the host's own forward. Strings need `encoder=` (default: the offline MiniLM), ids
    need `store=`. `alignment` are TextAlignment's further settings, `wrapping` those of `wrap`.

    Raises ValueError for a bad weight or where the host has an attachment already.
    """
    host = bare(host)
    if host in _attached:
        raise ValueError("this host has an attachment already: tavq.detach(host) first")
    if text_dim is None and encoder is None and store is None:
        from tavq_plugin.text.encoder import offline_encoder

        encoder = offline_encoder()
    tokenizer = wrap(host, **wrapping)
    device = next(host.parameters()).device
    with own_randomness(device):
        heads = TextAlignment(tokenizer, text_dim, encoder=encoder, store=store, **(alignment or {})).to(device)
    align = Attachment(tokenizer.adapter, tokenizer.hierarchy, heads, weight=weight, level_weight=level_weight)
    group = {"params": list(align.parameters()), "lr": optimizer.param_groups[0]["lr"]}
    optimizer.add_param_group(group)
    align._optimizer = optimizer
    _attached[host] = align
    return align


def detach(host: nn.Module) -> None:
    """Leave the host, and the optimizer given to `attach`, as they were found; nothing to do for a wrapped host."""
    align = _attached.pop(bare(host), None)
    if align is not None:
        align.release()


def _adapter(host: nn.Module, **description: Any) -> Adapter:
    try:
        return (adapter_for(host) or Host)(host, **description)
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


def _paths(adapter: Adapter) -> tuple[str, ...]:
    return (*adapter.taps, adapter.quantizer)


def _codes(adapter: Adapter, hierarchy: Hierarchy, seen: dict[str, Seen]) -> Codes:
    call = seen[adapter.quantizer]
    features = [adapter.tokens(seen[path].output, level) for level, path in enumerate(adapter.taps)]
    return hierarchy(features, call.z_in, adapter.parse(call.z_in, call.output), whole(adapter.codebook()))


def _refusing_at_the_door(recorder: Recorder) -> dict[str, Seen]:
    try:
        return recorder.take()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
