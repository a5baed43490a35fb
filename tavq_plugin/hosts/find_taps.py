"""Where to tap a host nobody described: one forward on an example, read off module by module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tavq_plugin.hosts.hooks import find_module
from tavq_plugin.types import Quantized


class Candidate(NamedTuple):
    """A module whose output is a map on the way to the quantizer."""

    path: str
    size: tuple[int, int]  # h w


class _Fired(NamedTuple):
    path: str
    output: Tensor
    version: int


def find_taps(
    model: nn.Module,
    quantizer: str,
    run: Callable[[], Any],
    *,
    parse: Callable[[Any, Any], Quantized],
    as_map: Callable[[Any], Tensor | None],
) -> tuple[str, str]:
    """The last module at each of the two coarsest resolutions above the quantizer's; paths, fine → mid.

    run: the host's forward on an example that requires gradient. parse: the quantizer's input and output, understood.
    as_map: a module's output as b c h w, or None where it is none. Left out: modules that never fire, that the
    quantizer's input does not depend on, or whose output is changed in place later. Raises ValueError where fewer
    than two resolutions remain.
    """
    fired, z_in, output = _record(model, quantizer, run)
    if not z_in.requires_grad:
        raise ValueError(
            f"the input of quantizer {quantizer!r} carries no gradient back to the image (a detached or no_grad "
            "encoder?): no alignment loss can train this host; run its encoder with gradient, or name taps="
        )
    grid = parse(z_in, output).vectors
    whole = [(call, shaped) for call in fired if (shaped := as_map(call.output)) is not None]
    spoiled = {call.path for call, _ in whole if call.output._version != call.version}
    outputs = [call.output for call, _ in whole]
    used = torch.autograd.grad(z_in, outputs, torch.ones_like(z_in), allow_unused=True) if outputs else ()
    sizes: dict[tuple[int, int], Candidate] = {}
    for (call, shaped), gradient in zip(whole, used, strict=True):
        size = tuple(shaped.shape[-2:])
        if gradient is not None and call.path not in spoiled and size[0] * size[1] > grid[0, 0].numel():
            sizes[size] = Candidate(call.path, size)
    finer = sorted(sizes.values(), key=lambda candidate: -candidate.size[0] * candidate.size[1])
    if len(finer) < 2:
        h, w = grid.shape[-2:]
        found = ", ".join(f"{c.size[0]}×{c.size[1]} ({c.path})" for c in finer) or "none"
        changed = f"; changed in place later, so unusable: {', '.join(sorted(spoiled))}" if spoiled else ""
        raise ValueError(
            f"three levels need two resolutions above the quantizer's {h}×{w} grid, and a dry run found: "
            f"{found}{changed}. Name two modules of the encoder in taps=, fine → mid (layout= where they are no maps)"
        )
    return finer[-2].path, finer[-1].path


def _record(model: nn.Module, quantizer: str, run: Callable[[], Any]) -> tuple[list[_Fired], Tensor, Any]:
    """Every tensor given before the quantizer's first call, in order, and that call's input and output."""
    target = find_module(model, quantizer)
    skip = {model, *target.modules()}
    fired: list[_Fired] = []
    calls: list[tuple[Any, Any]] = []

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if not calls and isinstance(output, Tensor) and output.requires_grad:
                fired.append(_Fired(path, output, output._version))

        return hook

    def reach(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls.append((args[0] if args else next(iter(kwargs.values())), output))

    with ExitStack() as stack, torch.enable_grad():
        for path, module in model.named_modules():
            if module not in skip:
                stack.callback(module.register_forward_hook(keep(path)).remove)
        stack.callback(target.register_forward_hook(reach, with_kwargs=True).remove)
        run()
    if not calls:
        raise ValueError(
            f"the quantizer {quantizer!r} never ran in the host's forward: name another path in quantizer=, or give "
            "example=, a batch of images the host quantizes"
        )
    return fired, *calls[0]
