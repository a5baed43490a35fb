"""What each of two processes runs: one function per case, whose result goes back to the test."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from helpers.conformance import texts
from helpers.plain_training import DESCRIPTION, IMAGES, Plain, attached, own_loss, rank_batch, state
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import tavq_plugin as tavq


def attached_under_ddp(
    find: bool, batches: dict[str, bool], settings: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """Five steps of a host and an attachment, each in DDP; each rank draws its heads from another seed."""
    host = Plain()
    model = DistributedDataParallel(host, find_unused_parameters=find)
    optimizer, align = attached(model, seed=dist.get_rank(), **settings or {})
    call = DistributedDataParallel(align, find_unused_parameters=find)
    images, batch = rank_batch(dist.get_rank(), **batches)
    for _ in range(5):
        optimizer.zero_grad()
        (own_loss(model(images), images) + call(batch)).backward()
        optimizer.step()
    return state(host, align)


def wrapped_under_ddp(find: bool) -> dict[str, Tensor]:
    """Five steps of a tokenizer and an alignment, each in DDP."""
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    align = tavq.TextAlignment(tokenizer, 6)
    model = DistributedDataParallel(tokenizer, find_unused_parameters=find)
    call = DistributedDataParallel(align, find_unused_parameters=find)
    optimizer = torch.optim.Adam([*tokenizer.parameters(), *align.parameters()], lr=1e-2)
    images, batch = rank_batch(dist.get_rank(), uneven=True)
    for _ in range(5):
        optimizer.zero_grad()
        output, codes = model(images)
        (own_loss(output, images) + codes.loss + call(codes, batch)).backward()
        optimizer.step()
    return state(tokenizer, align)


def out_of_step() -> list[str]:
    """Error messages if nothing averages the heads' gradients: attached, wrapped, and an alignment alone."""
    host = Plain()
    _, align = attached(host)
    host(IMAGES)
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    with torch.no_grad():
        _, codes = tokenizer(IMAGES)
    alone = tavq.TextAlignment(tokenizer, 6)
    said = []
    for attempt in (lambda: align(texts()), lambda: tokenizer(IMAGES), lambda: alone(codes, texts())):
        try:
            attempt()
        except RuntimeError as error:
            said.append(str(error))
    return said


def at_the_codebook() -> tuple[Tensor, Tensor, Tensor]:
    """The codebook's gradient on this rank: the host's alone, as it goes into the reduction, and the reduced one."""
    host = Plain()
    table, kept = host.vq.embedding.weight, list[Tensor]()
    model = DistributedDataParallel(host)
    _, align = attached(model, balance=0.7)
    call = DistributedDataParallel(align)
    images, batch = rank_batch(dist.get_rank())
    output = model(images)
    table.register_hook(lambda grad: kept.append(grad.clone()))
    loss = own_loss(output, images) + call(batch)
    table.register_hook(lambda grad: kept.append(grad.clone()))
    loss.backward()
    before, own = kept[-2:]  # the first is the alignment's own, from its backward
    assert table.grad is not None
    return before, own, table.grad.clone()


def accumulated_under_ddp(settings: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of two micro-batches, averaged over the ranks once, and of both in one backward."""

    def gradients(at_once: bool) -> list[Tensor]:
        host = Plain()
        model = DistributedDataParallel(host)
        _, align = attached(model, **settings)
        call = DistributedDataParallel(align)
        images = [IMAGES + dist.get_rank(), IMAGES - dist.get_rank()]
        for i, part in enumerate(images):
            alone = i == 0 and not at_once
            with contextlib.ExitStack() as unsynced:
                if alone:
                    unsynced.enter_context(model.no_sync())
                    unsynced.enter_context(call.no_sync())
                (own_loss(model(part), part) + call(texts())).backward()
        return [p.grad for p in (*host.parameters(), *align.parameters())]

    return gradients(False), gradients(True)


def attached_under_fsdp(parts: list[str], settings: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Five steps of a host sharded by FSDP2, the given parts separately; the heads are in DDP."""
    from torch.distributed.fsdp import fully_shard

    host = Plain()
    for part in parts:
        fully_shard(host.get_submodule(part))
    fully_shard(host)
    sharded = [type(p).__name__ for p in host.parameters()]
    optimizer, align = attached(host, **settings or {})
    assert [type(p).__name__ for p in host.parameters()] == sharded == ["DTensor"] * len(sharded)
    call = DistributedDataParallel(align)
    images, batch = rank_batch(dist.get_rank())
    for _ in range(5):
        optimizer.zero_grad()
        (own_loss(host(images), images) + call(batch)).backward()
        optimizer.step()
    return state(host, align)


def refused_under_fsdp() -> str:
    """The error of a balance at a codebook that is sharded."""
    from torch.distributed.fsdp import fully_shard

    host = Plain()
    fully_shard(host)
    try:
        attached(host, balance="auto")  # balanced by default
    except ValueError as error:
        return str(error)
    return ""


def prepared() -> dict[str, Tensor]:
    """Five steps under accelerate, `align` prepared like everything else."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    host = Plain()
    optimizer, align = attached(host)
    model, optimizer, call = accelerator.prepare(host, optimizer, align)
    images, batch = rank_batch(accelerator.process_index)
    for _ in range(5):
        optimizer.zero_grad()
        accelerator.backward(own_loss(model(images), images) + call(batch))
        optimizer.step()
    return state(host, align)
