"""State of modules that FSDP2 shards: gathered to be saved, dealt out again to be loaded; others stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.environment import whole

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(tree: Any) -> Any:
    """The same dicts and lists with every sharded tensor whole; all processes call it, in step."""
    if isinstance(tree, Tensor):
        return whole(tree.detach())
    if isinstance(tree, Mapping):
        return {key: gathered(value) for key, value in tree.items()}
    return [gathered(value) for value in tree] if isinstance(tree, list | tuple) else tree


def dealt(value: Any, like: Tensor) -> Any:
    """A whole tensor of a sharded one's shape as its shards; anything else as it is."""
    sharded = torch.distributed.is_available() and isinstance(like, DTensor)
    if not sharded or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_module(module: nn.Module, state: Mapping[str, Any]) -> None:
    """A whole state dict into a module, strictly; its sharded parameters take their shards."""
    live = module.state_dict()
    module.load_state_dict({name: dealt(value, live.get(name)) for name, value in state.items()}, strict=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """A whole optimizer's state into one on parameters that may be sharded or channels_last.

    A fused optimizer walks through parameter and state in the order of their memory, so both must lie alike.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {name: _laid_out(dealt(value, parameters[index]), parameters[index]) for name, value in part.items()}
        for index, part in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _laid_out(value: Any, like: Tensor) -> Any:
    """A tensor of a parameter's shape in that parameter's memory format; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
