"""Contexts that leave no trace: at their end they restore random streams, training flags and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule


@contextmanager
def isolated_random_state(device: torch.device) -> Iterator[None]:
    """Draw random numbers inside the block without advancing the random streams that the host's training reads."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def eval_without_trace(host: nn.Module) -> Iterator[None]:
    """Run the block in eval mode, without gradient and with isolated random streams.

    Training flags, buffers and shards are restored at the end, also on error; parameters and plain attributes are not.
    It is for long reading by a host that is known: it copies little. `tavq_plugin.hosts.restored.restored` is for a few
    runs of a host that is not known yet: it copies and restores everything, in any mode.
    """
    flags = [(module, module.training) for module in host.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in host.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.no_grad(), isolated_random_state(next(host.parameters()).device):
            host.eval()
            yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)  # some hosts replace the tensor
        for module in host.modules():
            if dist.is_available() and isinstance(module, FSDPModule):
                module.reshard()
