"""Modules inside DDP, FSDP2 and torch.compile, and tensors that are sharded over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Partial, distribute_tensor


def unwrap(host: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile; hooks on it still fire.

    >>> unwrap(torch.compile(nn.Identity()))
    Identity()
    """
    while True:
        if isinstance(host, DistributedDataParallel):
            host = host.module
        elif isinstance(host, torch._dynamo.OptimizedModule):
            host = host._orig_mod
        else:
            return host


def is_sharded(host: nn.Module) -> bool:
    """Whether FSDP2's `fully_shard` was called on the host."""
    return dist.is_available() and isinstance(host, FSDPModule)


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over processes, as FSDP2's parameters are."""
    return dist.is_available() and isinstance(tensor, DTensor)


@overload
def gather_sharded(tensor: Tensor) -> Tensor: ...
@overload
def gather_sharded(tensor: Tensor | None) -> Tensor | None: ...
def gather_sharded(tensor: Tensor | None) -> Tensor | None:
    """Gather a tensor that is sharded over ranks; its gradient is averaged over ranks, as FSDP averages it.

    Any other tensor comes back unchanged.
    """
    if not dist.is_available() or not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh
    gathered = tensor.full_tensor(grad_placements=[Partial()] * mesh.ndim)  # a sum: gloo has no mean
    if gathered.requires_grad:
        gathered.register_hook(lambda grad: grad / mesh.size())
    return gathered


_synchronized: WeakSet[nn.Module] = WeakSet()


def mark_synchronized(module: nn.Module) -> None:
    """Declare that FSDP2 shards this module as a whole; inside its forward its parts do not look sharded."""
    _synchronized.update(module.modules())


def require_synchronized(module: nn.Module, name: str) -> None:
    """Raise RuntimeError if several processes train and nothing averages this module's gradients over them."""
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    if module in _synchronized:
        return
    ddp = DistributedDataParallel._get_active_ddp_module()
    inside_ddp = ddp is not None and any(part is module for part in ddp.modules())
    if not inside_ddp and not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        raise RuntimeError(
            f"{dist.get_world_size()} processes train, and {name} would drift apart between them: wrap it, {name} = "
            f"torch.nn.parallel.DistributedDataParallel({name}) or accelerator.prepare({name}), and call the result"
        )


def gather_state(tree: Any) -> Any:
    """The same dicts and lists with every sharded tensor gathered; all processes must call this together."""
    if isinstance(tree, Tensor):
        return gather_sharded(tree.detach())
    if isinstance(tree, Mapping):
        return {key: gather_state(value) for key, value in tree.items()}
    return [gather_state(value) for value in tree] if isinstance(tree, list | tuple) else tree


def shard_like(value: Any, like: Tensor | None) -> Any:
    """Shard a full tensor like another tensor of its shape; anything else comes back unchanged."""
    if not dist.is_available() or not isinstance(like, DTensor):
        return value
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_module(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a full (unsharded) state dict into a module, strictly; sharded parameters take their shards."""
    live = module.state_dict()
    module.load_state_dict({name: shard_like(value, live.get(name)) for name, value in state.items()}, strict=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a full (unsharded) optimizer state; the optimizer's parameters may be sharded or channels_last.

    A fused optimizer steps through parameter and state in memory order, so each state gets its parameter's strides.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {
            name: _with_strides_of(parameters[index], shard_like(value, parameters[index]))
            for name, value in part.items()
        }
        for index, part in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _with_strides_of(like: Tensor, value: Any) -> Any:
    """A tensor of a parameter's shape, in that parameter's memory order; anything else comes back unchanged."""
    if not isinstance(value, Tensor) or value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
