"""Prepare tensors for safetensors, which accepts neither shared nor non-contiguous memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor


def storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same names and values; each tensor is detached, on the CPU, contiguous, and shares no memory.

    Tensors that share memory (tied weights, a module with two names) are copied, one per name, so that the file loads
    strictly. Raises ValueError as in `refuse_unstorable`.

    >>> weight = torch.ones(2, 3)
    >>> state = storable({"a": weight, "b": weight, "c": weight.T})
    >>> [value.is_contiguous() for value in state.values()], state["a"].data_ptr() == state["b"].data_ptr()
    ([True, True, True], False)
    """
    refuse_unstorable(state)
    ready: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if memory in used else tensor
        used.add(memory)
    return ready


def refuse_unstorable(state: Mapping[str, Any], what: str = "the state") -> None:
    """Raise ValueError with the first entry that safetensors cannot store; no value is read or copied."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = f"a {type(value).__name__}"
        elif value.is_meta:
            kind = "a tensor on the meta device, without values"
        elif value.layout is not torch.strided:
            kind = f"a sparse tensor ({value.layout})"
        elif not _is_supported(value.dtype):
            kind = f"a tensor of {value.dtype}"
        else:
            continue
        raise ValueError(
            f"{what} holds {kind} at {name!r}, which safetensors cannot store: make it a dense tensor of a plain type, "
            "or leave it out of the state dict (register_buffer(…, persistent=False))"
        )


@cache
def _is_supported(dtype: torch.dtype) -> bool:
    """Whether the installed safetensors can write this dtype; tried on an empty tensor."""
    from safetensors.torch import save

    try:
        save({"trial": torch.empty(0, dtype=dtype)})
    except Exception:  # KeyError or another, depending on the version
        return False
    return True
