"""Find where to tap a host that no adapter describes, by one dry forward on example images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tavq_plugin.hosts.call_sites import find_callee, find_module, hook_calls, split_number
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
    excluded: Collection[str] = (),
) -> tuple[str, str]:
    """Paths of two modules of the encoder, fine to coarse.

    These are the last ones at each of the two coarsest resolutions above the quantizer's. Of a module that runs several
    times, one call is named, if no others are found. If the encoder has one resolution above the quantizer's, the
    second tap is on the quantizer's grid, after two thirds of the modules there; if it has none (a ViT), both are,
    after one and two thirds.

    A module is left out if it never runs, if its output is changed in place later, or if the quantizer's input does not
    depend on it.

    Args:
        model: The host.
        quantizer: Path of its quantizer.
        run: Runs the host on example images that require gradient.
        parse: The quantizer's input and output -> Quantized.
        as_map: A module's output -> b c h w, or None if it is no feature map.
        excluded: Paths of modules that are known to be no feature maps.

    Raises:
        ValueError: The quantizer never runs or gets no gradient, or fewer than two feature maps are left.
    """
    trace = _trace_forward(model, quantizer, run)
    if not isinstance(trace.z_in, Tensor) or not trace.z_in.requires_grad:
        raise ValueError(
            f"the input of quantizer {quantizer!r} carries no gradient back to the image (a detached or no_grad "
            "encoder?), so no alignment loss can train this host: run its encoder with gradient, or name taps="
        )
    grid = tuple(parse(trace.z_in, trace.quantizer_output).vectors.shape[-2:])
    maps = [(output, shaped) for output in trace.outputs if (shaped := as_map(output.tensor)) is not None]
    changed = {split_number(output.path)[0] for output, _ in maps if output.changed_in_place}
    usable = [
        candidate
        for candidate in _candidates(trace.z_in, maps)
        if split_number(candidate.path)[0] not in changed and split_number(candidate.path)[0] not in excluded
    ]
    once = [candidate for candidate in usable if "#" not in candidate.path]
    for found in (_above(once, grid), _above(usable, grid)):
        if len(found) >= 2:
            return found[-2].path, found[-1].path
    above = _above(once, grid)
    sizes = {c.size for c in above}
    unseen = [shaped for output, shaped in maps if split_number(output.path)[0] in changed]
    hidden = {size for shaped in unseen if (size := tuple(shaped.shape[-2:])) not in sizes and prod(size) > prod(grid)}
    pair = (*[c.path for c in above], *_at_thirds(once, grid, trace, count=2 - len(above)))
    if len(pair) == 2 and not hidden:  # a resolution that only an in-place change hides is not passed over
        return pair
    listed = ", ".join(f"{c.size[0]}×{c.size[1]} ({c.path})" for c in _above(usable, grid)) or "none"
    unusable = f"; changed in place later, so unusable: {', '.join(sorted(changed))}" if changed else ""
    raise ValueError(
        f"three levels need two resolutions above the quantizer's {grid[0]}×{grid[1]} grid, or modules on it, and a "
        f"dry run found: {listed}{unusable}. Name two modules of the encoder in taps=, fine to coarse, and give "
        "layout= where their outputs are not b c h w"
    )


def _above(candidates: list[TapCandidate], grid: tuple[int, ...]) -> list[TapCandidate]:
    """The last module of each resolution above the quantizer's, fine to coarse."""
    by_size = {c.size: c for c in candidates if c.size[0] * c.size[1] > grid[0] * grid[1]}
    return sorted(by_size.values(), key=lambda c: -c.size[0] * c.size[1])


def _at_thirds(candidates: list[TapCandidate], grid: tuple[int, ...], trace: _Trace, count: int) -> list[str]:
    """Paths of modules on the quantizer's grid: one after two thirds of the depth, or two after one and two thirds.

    The depth is that of the longest list of blocks, such as `layers.0`, `layers.1`, …; else of the outermost modules,
    without one that returns the quantizer's input itself.
    """
    latents = {output.path for output in trace.outputs if output.tensor is trace.z_in}
    paths = [c.path for c in candidates if c.size == grid and c.path not in latents]
    lists: dict[str, list[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        if name.isdigit():
            lists.setdefault(parent, []).append(path)
    blocks = max(lists.values(), key=len, default=[])
    outermost = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    depth = blocks if len(blocks) >= 3 else outermost
    n = len(depth)
    if n < count:
        return []
    if depth is blocks:
        places = [n // 3 - 1, 2 * n // 3 - 1]
    else:
        places = [0, 1] if n == 2 else [n // 3, 2 * n // 3]
    return [depth[place] for place in places[-count:]] if n > 1 else depth


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
    inside = () if find_callee(model, quantizer) else find_module(model, quantizer).modules()
    skipped = {model, *inside}
    number = split_number(quantizer)[1] or 1
    outputs: list[_ModuleOutput] = []
    calls: list[tuple[Any, Any]] = []  # of the quantizer
    runs: Counter[str] = Counter()

    def keep_output(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if len(calls) >= number:
                return
            runs[path] += 1
            if isinstance(output, Tensor) and output.requires_grad:
                outputs.append(_ModuleOutput(f"{path}#{runs[path]}", output, output._version))

        return hook

    def keep_call(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls.append((args[0] if args else next(iter(kwargs.values())), output))

    with ExitStack() as stack, torch.enable_grad():
        for path, module in model.named_modules():
            if module not in skipped:
                stack.callback(module.register_forward_hook(keep_output(path)).remove)
        stack.callback(hook_calls(model, split_number(quantizer)[0], keep_call).remove)
        run()
    if len(calls) < number:
        raise ValueError(
            f"the quantizer {quantizer!r} never ran in the host's forward{_runs(calls)}: name another path in "
            'quantizer=, which may be a method\'s ("vq.forward" or "vq.quantize", where the host calls that) or a '
            'function\'s ("package.module:function"); or, if the host quantizes in another method, give encode=, '
            'such as encode="encode"; or example=, a batch of images the host quantizes'
        )
    once = {f"{path}#1": path for path, count in runs.items() if count == 1}
    outputs = [output._replace(path=once.get(output.path, output.path)) for output in outputs]
    return _Trace(outputs, *calls[number - 1])


def _runs(calls: list[Any]) -> str:
    return f" so often (it ran {len(calls)} times)" if calls else ""
