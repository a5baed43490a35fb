"""Tensors made ready for safetensors, which takes neither shared nor strided memory; what cannot be kept is named."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor


def storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same names and values, each tensor detached, on the CPU, contiguous and in memory of its own.

    What shares memory (a module held twice, tied weights) is written once per name, so that the file loads strictly.
    Raises ValueError as `refuse_unstorable`.

    >>> weight = torch.ones(2, 3)
    >>> state = storable({"a": weight, "b": weight, "c": weight.T})
    >>> [value.is_contiguous() for value in state.values()], state["a"].data_ptr() == state["b"].data_ptr()
    ([True, True, True], False)
    """
    refuse_unstorable(state)
    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return ready


def refuse_unstorable(state: Mapping[str, Any], what: str = "the state") -> None:
    """ValueError naming the first entry that safetensors cannot keep; cheap, as no value is read or copied."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = f"a {type(value).__name__}"
        elif value.is_meta:
            kind = "a tensor on the meta device, without values"
        elif value.layout is not torch.strided:
            kind = f"a sparse tensor ({value.layout})"
        elif not _known(value.dtype):
            kind = f"a tensor of {value.dtype}"
        else:
            continue
        raise ValueError(
            f"{what} holds {kind} at {name!r}, which safetensors cannot keep: make it a dense tensor of a plain type, "
            "or leave it out of the state dict (register_buffer(…, persistent=False))"
        )


@cache
def _known(dtype: torch.dtype) -> bool:
    """Whether the installed safetensors writes the type: an empty tensor is the trial."""
    from safetensors.torch import save

    try:
        save({"trial": torch.empty(0, dtype=dtype)})
    except Exception:  # a KeyError today, other errors in other versions
        return False
    return True
