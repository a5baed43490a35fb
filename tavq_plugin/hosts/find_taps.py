"""Find where to tap a host that no adapter describes, by one dry forward on example images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tavq_plugin.hosts.hooks import find_module
from tavq_plugin.types import Quantized


class TapCandidate(NamedTuple):
    """A module whose output is a feature map on the way to the quantizer."""

    path: str
    size: tuple[int, int]  # h w


class _ModuleOutput(NamedTuple):
    path: str
    tensor: Tensor
    version: int  # the tensor's in-place counter when the module returned it

    @property
    def changed_in_place(self) -> bool:
        return self.tensor._version != self.version


class _Trace(NamedTuple):
    """What one forward of a host shows."""

    outputs: list[_ModuleOutput]  # of the modules that ran before the quantizer, in order
    z_in: Tensor  # the quantizer's input
    quantizer_output: Any


def find_taps(
    model: nn.Module,
    quantizer: str,
    run: Callable[[], Any],
    *,
    parse: Callable[[Any, Any], Quantized],
    as_map: Callable[[Any], Tensor | None],
) -> tuple[str, str]:
    """Paths of the last module at each of the two coarsest resolutions above the quantizer's, fine to coarse.

    A module is left out if it never runs or runs several times, if its output is changed in place later, or if the
    quantizer's input does not depend on it.

    Args:
        model: The host.
        quantizer: Path of its quantizer.
        run: Runs the host on example images that require gradient.
        parse: The quantizer's input and output -> Quantized.
        as_map: A module's output -> b c h w, or None if it is no feature map.

    Raises:
        ValueError: The quantizer never runs or gets no gradient, or fewer than two resolutions are left.
    """
    trace = _trace_forward(model, quantizer, run)
    if not trace.z_in.requires_grad:
        raise ValueError(
            f"the input of quantizer {quantizer!r} carries no gradient back to the image (a detached or no_grad "
            "encoder?), so no alignment loss can train this host: run its encoder with gradient, or name taps="
        )
    grid = parse(trace.z_in, trace.quantizer_output).vectors.shape[-2:]
    maps = [(output, shaped) for output in trace.outputs if (shaped := as_map(output.tensor)) is not None]
    changed = {output.path for output, _ in maps if output.changed_in_place}
    runs = Counter(output.path for output in trace.outputs)
    repeated = {output.path for output, _ in maps if runs[output.path] > 1}  # one path would name several maps
    candidates = [c for c in _candidates(trace.z_in, maps) if c.path not in changed | repeated]
    by_size = {c.size: c for c in candidates if c.size[0] * c.size[1] > grid[0] * grid[1]}  # the last one of each size
    fine_to_coarse = sorted(by_size.values(), key=lambda c: -c.size[0] * c.size[1])
    if len(fine_to_coarse) < 2:
        found = ", ".join(f"{c.size[0]}×{c.size[1]} ({c.path})" for c in fine_to_coarse) or "none"
        unusable = f"; changed in place later, so unusable: {', '.join(sorted(changed))}" if changed else ""
        unusable += f"; run several times, so unusable: {', '.join(sorted(repeated))}" if repeated else ""
        raise ValueError(
            f"three levels need two resolutions above the quantizer's {grid[0]}×{grid[1]} grid, and a dry run found: "
            f"{found}{unusable}. Name two modules of the encoder in taps=, fine to coarse, and give layout= where "
            "their outputs are not b c h w"
        )
    return fine_to_coarse[-2].path, fine_to_coarse[-1].path


def _candidates(z_in: Tensor, maps: list[tuple[_ModuleOutput, Tensor]]) -> list[TapCandidate]:
    """The modules on whose feature maps the quantizer's input depends, in the order they ran."""
    if not maps:
        return []
    tensors = [output.tensor for output, _ in maps]
    gradients = torch.autograd.grad(z_in, tensors, torch.ones_like(z_in), allow_unused=True)
    return [
        TapCandidate(output.path, (shaped.shape[-2], shaped.shape[-1]))
        for (output, shaped), gradient in zip(maps, gradients, strict=True)
        if gradient is not None
    ]


def _trace_forward(model: nn.Module, quantizer: str, run: Callable[[], Any]) -> _Trace:
    """Every tensor that a module returned before the quantizer's first call, and that call's input and output."""
    target = find_module(model, quantizer)
    skipped = {model, *target.modules()}
    outputs: list[_ModuleOutput] = []
    calls: list[tuple[Any, Any]] = []  # of the quantizer

    def keep_output(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if not calls and isinstance(output, Tensor) and output.requires_grad:
                outputs.append(_ModuleOutput(path, output, output._version))

        return hook

    def keep_call(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls.append((args[0] if args else next(iter(kwargs.values())), output))

    with ExitStack() as stack, torch.enable_grad():
        for path, module in model.named_modules():
            if module not in skipped:
                stack.callback(module.register_forward_hook(keep_output(path)).remove)
        stack.callback(target.register_forward_hook(keep_call, with_kwargs=True).remove)
        run()
    if not calls:
        raise ValueError(
            f"the quantizer {quantizer!r} never ran in the host's forward: name another path in quantizer=, or give "
            "example=, a batch of images the host quantizes"
        )
    return _Trace(outputs, *calls[0])
