"""`wrap` and `Tokenizer`: codes of three levels from an unchanged host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.distributed import gather_sharded, require_synchronized, unwrap
from tavq_plugin.hosts.base import HostAdapter
from tavq_plugin.hosts.detached_copies import detached_copies
from tavq_plugin.hosts.dry_run import (
    problem_of_decode,
    problem_of_own_tokens,
    read_working_images,
    verify_training,
    with_maps_of_the_image,
)
from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.hooks import Capture, require_gradient, tapped
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.registry import adapter_for
from tavq_plugin.hosts.restored import restored
from tavq_plugin.hosts.summary import DryRun, logger, summarize
from tavq_plugin.hosts.token_vectors import image_of_tokens, tokens_of_images, tokens_problem
from tavq_plugin.hosts.verify_reading import (
    verify_quantized,
    verify_taps,
)
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.types import Codes, GradTo, Quantized


class Tokenizer(nn.Module):
    """A host and the levels the plug-in adds; images -> (host output, Codes).

    Hooks are on the host only while a call runs. `host` is the user's own object; `hierarchy` holds the new parameters.
    If `on_copies` is true, a forward with gradient computes the codes on detached copies (`Codes.copies`).
    `print(tokenizer)` shows one line, `tokenizer.summary()` a table.
    """

    def __init__(self, adapter: Adapter, hierarchy: Hierarchy, code_width: int, sizes: DryRun) -> None:
        super().__init__()
        self.host, self.hierarchy = adapter.model, hierarchy
        self.adapter, self.code_width, self.sizes = adapter, code_width, sizes
        self.on_copies = False
        self.decode_fails = ""  # why `decode` cannot give the host's own images; found by `wrap`
        self.tokens_fail = ""  # why tokens do not give the host's own vectors; found by `wrap`

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Codes]:
        """The host's own output, and the codes of every level."""
        require_synchronized(self.hierarchy, "tokenizer")
        with tapped(self.host, at=tapped_paths(self.adapter)) as recorder:
            output = (getattr(self.adapter, "given_forward", None) or self.host)(images, *args, **kwargs)
        seen = recorder.take()
        if torch.is_grad_enabled():
            require_gradient(seen)
        on_copies = self.on_copies and torch.is_grad_enabled()
        return output, codes_from(self.adapter, self.hierarchy, seen, on_copies=on_copies)

    def encode(self, images: Tensor) -> Codes:
        """Images to codes, without the decoder if the host's adapter can leave it out."""
        with tapped(self.host, at=tapped_paths(self.adapter)) as recorder:
            self.adapter.encode(images)
        return codes_from(self.adapter, self.hierarchy, recorder.take())

    def decode(self, codes: Codes) -> Tensor:
        """Images from the last level alone; Codes -> b 3 h w. ValueError if `wrap` saw the host give other images."""
        if self.decode_fails:
            raise ValueError(self.decode_fails)
        return self.adapter.decode(codes.final.quantized)

    def tokens(self, images: Tensor) -> Tensor:
        """Numbers of the host's own codes, without gradient; b 3 h w -> b h w, int64.

        Where the host has several codes per place, and its adapter reads them, the shape is the host's own, such as
        b h w depth. The host runs in the mode it is in: call host.eval() if a training forward moves its codebook.
        """
        return tokens_of_images(self.adapter, images)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Images from what `tokens` returned, as the host decodes them, without gradient; b h w -> b 3 h w.

        ValueError if the tokens are no numbers of codes, or if `wrap` saw that the host decodes something else.
        """
        decodes_itself = hasattr(self.adapter, "decode_own_tokens")
        problem = self.tokens_fail or ("" if decodes_itself else self.decode_fails)
        if problem:
            raise ValueError(problem)
        return image_of_tokens(self.adapter, tokens)

    def send_gradient(self, grad_to: GradTo) -> None:
        """Change where a loss on the codes sends its gradient; ValueError if the host makes that impossible."""
        self.hierarchy.grad_to = _possible_grad_to(grad_to, gather_sharded(self.adapter.codebook()))

    def summary(self) -> str:
        """A table of the levels, the codebook, the gradient and the parameters added."""
        return summarize(self.adapter, self.hierarchy, self.sizes).table()

    def __str__(self) -> str:
        return str(summarize(self.adapter, self.hierarchy, self.sizes))


@renamed_arguments(beside="detach_added_levels")
def wrap(
    host: nn.Module,
    *,
    taps: Sequence[str] | None = None,
    quantizer: str | None = None,
    layout: str | None = None,
    parse: Callable[..., Quantized] | None = None,
    example: Tensor | None = None,
    encode: str | Callable[..., Any] | None = None,
    decode: str | Callable[..., Tensor] | None = None,
    forward: str | Callable[..., Any] | None = None,
    tokens: str | Callable[..., Tensor] | None = None,
    decode_tokens: str | Callable[..., Tensor] | None = None,
    grad_to: GradTo | None = None,
    codebook: str | Callable[[nn.Module], Tensor] = "shared",
    codebook_size: int | None = None,
    max_grid: int = 64,
    detach_added_levels: bool = False,
    log_summary: bool = True,
) -> Tokenizer:
    """Wrap a host in a tokenizer with codes of three levels; its code, weights and state dict do not change.

    A host that an adapter knows, or any host around one known quantizer, needs no settings. `wrap` runs the host on
    small images of noise, checks on them what it inferred, and leaves no trace: parameters, buffers, plain attributes,
    training flags and random streams are as before.

    Args:
        host: The user's own model, outside DistributedDataParallel and torch.compile.
        taps: Paths of two encoder modules, fine to coarse. Default: the adapter's, else found by one dry forward.
        quantizer: Path of the quantizer: a module ("vq"), a method ("vq.forward", "quantize_fn") or a function
            ("package.module:function"); "vq#1" is the first of several calls in one forward pass. Default: the
            adapter's, else the only module of a known quantizer class.
        layout: Axis order of the tapped features, such as "b c h w" or "b n c". Default: "b c h w".
        parse: Reads the quantizer: (its input, its output) -> Quantized, or (its input, its output, the quantizer's
            module). Default: the adapter of the known quantizer.
        example: Images the host accepts, b c h w; noise of their size and range is used. Default: the adapter's
            smallest, else 64×64 pixels, or another size that works.
        encode: Runs the host through its quantizer, as its forward cannot: the name of a method, or a function of
            images, or of images and the host. What it returns does not matter. Default: `forward`.
        decode: Quantized map -> image, b c h w -> b 3 h w; given as `encode` is. Default: the host's `decode`.
        forward: Runs the whole host, if it takes more than images: `lambda images, host: host({"image": images})`;
            given as `encode` is. Default: the host itself.
        tokens: Images -> the host's own tokens, one tensor, where these are more than the indices of `parse`; given as
            `encode` is. Default: the adapter's, else the indices.
        decode_tokens: The host's own way back, tokens -> images; given as `encode` is. Default: the adapter's, else
            `decode` of the codebook's rows.
        grad_to: Where a loss on the codes sends its gradient: "encoder", "codebook" or "both". Default: "both" if the
            codebook learns by gradient, else (EMA, constant, frozen) "encoder".
        codebook: What levels 1-2 look up: "shared", the host's codebook; "own", one codebook each; or the host's, by
            its path, or by a function of the host that gives it, k c.
        codebook_size: Number of codes of each own codebook. Default: as many as the host's.
        max_grid: A tapped feature with more places per side than this is pooled before the nearest-code search.
        detach_added_levels: If true, levels 1-2 train without sending gradient to the host.
        log_summary: If true, log one line about what was added (logger "tavq_plugin", level INFO).

    Raises:
        ValueError: The quantizer is unknown, a path does not exist, a tap never fires or its output is changed in
            place, or a check fails: the indices, the vectors and the codebook do not belong together, a tap is no
            feature map before the quantizer, or the gradient cannot go where `grad_to` says.
    """
    if unwrap(host) is not host:
        raise ValueError(
            f"wrap(host) got the host inside {type(host).__name__}: wrap the host itself, then put the tokenizer in "
            "DistributedDataParallel or torch.compile; or use attach, which finds the host inside"
        )
    table_source = None if codebook in ("shared", "own") else codebook
    lookup = "own" if codebook == "own" else "shared"
    with restored(host):
        # what the host draws here does not change the first weights of the added levels
        with isolated_random_state(next(host.parameters()).device):
            functions = {"codebook": table_source, "encode": encode, "decode": decode, "forward": forward}
            functions |= {"tokens": tokens, "decode_tokens": decode_tokens}
            adapter = (adapter_for(host) or HostAdapter)(
                host,
                taps=taps,
                quantizer=quantizer,
                layout=layout,
                parse=parse,
                example=example,
                **{name: value for name, value in functions.items() if value is not None},
            )
            reading = read_working_images(adapter)
            reading = with_maps_of_the_image(adapter, reading)
            if isinstance(adapter, HostAdapter) and adapter.find_table(reading):
                reading = read_working_images(adapter)
            goes_to = _possible_grad_to(grad_to, reading.table)
            looks_up = lookup != "own" or (goes_to != "encoder" and getattr(reading.final, "looked_up", None) is None)
            table = reading.table
            verify_quantized(adapter, reading, table if looks_up else None)
            verify_taps(adapter, reading)
            tokens_fail = tokens_problem(adapter, reading)  # before another run moves the codebook
            tokens_fail = tokens_fail or problem_of_own_tokens(adapter, reading)
            verify_training(adapter, reading, asked=grad_to, goes_to=goes_to, looks_up=looks_up)
            decode_fails = problem_of_decode(adapter, reading)
        features, final, width = reading.features, reading.final, reading.final.vectors.shape[1]
        if table is not None and table.shape[1] != width:
            table = None  # the host's is not looked up, and no table of codes as they are
        if lookup == "own" and codebook_size is None and table is not None:
            codebook_size = len(table)
        hierarchy = Hierarchy(
            [feature.shape[1] for feature in features],
            width,
            codebook=lookup,
            codebook_size=codebook_size,
            grad_to=goes_to,
            straight_through=adapter.straight_through,
            max_grid=max_grid,
            detach_added_levels=detach_added_levels,
        ).to(final.vectors.device)
        levels = hierarchy(features, reading.z_in, final, table).levels
    sizes = DryRun(
        image=_grid(reading.images),
        grids=tuple(_grid(level.indices) for level in levels),
        codebook=None if table is None else (table.shape[0], table.shape[1]),
    )
    tokenizer = Tokenizer(adapter, hierarchy, width, sizes)
    tokenizer.decode_fails, tokenizer.tokens_fail = decode_fails, tokens_fail
    if log_summary:
        logger.info("wrapped: %s", tokenizer)
    return tokenizer


def _possible_grad_to(asked: GradTo | None, table: Tensor | None) -> GradTo:
    """Where the gradient goes: as asked, by default everywhere it can; ValueError if that is impossible."""
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


def codes_from(adapter: Adapter, hierarchy: Hierarchy, seen: dict[str, Capture], *, on_copies: bool = False) -> Codes:
    """Codes of every level, from the recorded calls of one forward pass of the host.

    On copies, nothing that is computed from the levels reaches the host's graph; the host's own quantizer loss does.
    """
    inputs, table = _hierarchy_inputs(adapter, seen), gather_sharded(adapter.codebook())
    if not on_copies:
        return hierarchy(*inputs, table)
    apart, copies = detached_copies(adapter, seen)
    codes = hierarchy(*_hierarchy_inputs(adapter, apart), table, loss_moves_host=False)
    return replace(codes, quantizer_loss=inputs[2].loss, copies=copies)


def _hierarchy_inputs(adapter: Adapter, seen: dict[str, Capture]) -> tuple[list[Tensor], Tensor, Quantized]:
    """The tapped features as maps, the quantizer's input, and its output as `Quantized`."""
    call = seen[adapter.quantizer]
    features = [adapter.tokens(seen[path].output, level) for level, path in enumerate(adapter.taps)]
    return features, call.z_in, adapter.parse(call.z_in, call.output)


def _grid(tensor: Tensor) -> tuple[int, int]:
    """The last two sizes of a tensor, h w."""
    return tensor.shape[-2], tensor.shape[-1]
