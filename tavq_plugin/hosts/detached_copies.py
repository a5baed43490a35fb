"""Detached copies of what a host's forward pass recorded, on which codes are computed apart from its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tavq_plugin.hosts.hooks import Capture
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.types import DetachedCopy


def detached_copies(adapter: Adapter, seen: dict[str, Capture]) -> tuple[dict[str, Capture], tuple[DetachedCopy, ...]]:
    """The recorded calls with every tensor replaced by a detached copy, and the list of copies.

    The copies are fine → coarse: each tap's output, the quantizer's input and its outputs, then the host's trainable
    parameters, among which are those of the codebook; these are not copied. Raises RuntimeError if a tap carries no
    gradient.
    """
    copies: dict[int, DetachedCopy] = {}  # by the tensor's id: a tensor that is recorded twice has one copy
    images = _count_images(adapter, seen)

    def copied(name: str, value: Any, axis: int | None = None) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        if id(value) not in copies:
            # in float32, as no loss scaler multiplies the gradients here, which half precision may round to 0
            copy = value.detach().to(torch.promote_types(value.dtype, torch.float32)).requires_grad_()
            copies[id(value)] = DetachedCopy(name, value, copy, _axis_of(value, images, axis))
        return copies[id(value)].copy

    apart = {}
    for path in adapter.taps:
        output = seen[path].output
        if not (isinstance(output, Tensor) and output.requires_grad):
            raise RuntimeError(
                f"the output of tap {path!r} carries no gradient, against which the alignment's could be balanced: is "
                "the encoder frozen? Unfreeze it, name another module in taps=, or give balance=None"
            )
        axes = getattr(adapter, "layout", "b").split()
        apart[path] = seen[path]._replace(output=copied(path, output, axes.index("b") if "b" in axes else None))
    call = seen[adapter.quantizer]
    z_in = copied(f"{adapter.quantizer} (input)", call.z_in)
    output = tree_map(lambda value: copied(f"{adapter.quantizer} (output)", value), call.output)
    apart[adapter.quantizer] = call._replace(z_in=z_in, output=output)
    parameters = (
        DetachedCopy(name, parameter, parameter, None)
        for name, parameter in adapter.model.named_parameters()
        if parameter.requires_grad
    )
    return apart, (*copies.values(), *parameters)


def _count_images(adapter: Adapter, seen: dict[str, Capture]) -> int:
    path = adapter.taps[0]
    return len(adapter.tokens(seen[path].output, 0))


def _axis_of(value: Tensor, images: int, axis: int | None) -> int | None:
    """The axis of the images: the given one if its size fits, else the first whose size does; None if none does.

    In a matrix only the rows may be images: the columns of flattened latents, (b n) c, may be as many by chance.
    """
    if axis is not None and axis < value.ndim and value.shape[axis] == images:
        return axis
    sizes = value.shape[:1] if value.ndim < 3 else value.shape
    return next((i for i, size in enumerate(sizes) if size == images), None)
