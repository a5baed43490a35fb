"""What training code puts around a host or its run: DDP, FSDP2, torch.compile, and a dry run that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Partial


def bare(host: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile, whose hooks fire all the same.

    >>> bare(torch.compile(nn.Identity()))
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


def whole(table: Tensor | None) -> Tensor | None:
    """A tensor that other ranks hold parts of, gathered; its gradient goes back as FSDP's does, a mean over ranks."""
    if not dist.is_available() or not isinstance(table, DTensor):
        return table
    mesh = table.device_mesh
    gathered = table.full_tensor(grad_placements=[Partial()] * mesh.ndim)  # a sum: gloo has no mean
    if gathered.requires_grad:
        gathered.register_hook(lambda grad: grad / mesh.size())
    return gathered


_kept_in_step: WeakSet[nn.Module] = WeakSet()


def keep_in_step(module: nn.Module) -> None:
    """Say that FSDP2 shards a module as a whole, so its parts are in step: inside its forward none looks sharded."""
    _kept_in_step.update(module.modules())


def refuse_out_of_step(module: nn.Module, name: str) -> None:
    """RuntimeError where several processes train and nothing averages this module's gradients over them."""
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    if module in _kept_in_step:
        return
    around = DistributedDataParallel._get_active_ddp_module()
    held = around is not None and any(part is module for part in around.modules())
    if not held and not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        raise RuntimeError(
            f"{dist.get_world_size()} processes train, and {name} would drift apart between them: put it in a module "
            f"of its own, {name} = torch.nn.parallel.DistributedDataParallel({name}) or accelerator.prepare({name}), "
            "and call that"
        )


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """New parameters are drawn without moving the random streams that the host's training reads."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def at_rest(host: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, own randomness; training flags, buffers and shards are put back, also on error."""
    flags = [(module, module.training) for module in host.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in host.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.no_grad(), own_randomness(next(host.parameters()).device):
            host.eval()
            yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)  # some hosts put a new tensor in its place
        for module in host.modules():
            if is_sharded(module):
                module.reshard()
