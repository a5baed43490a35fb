"""What each of two processes runs of the compared methods: one function per case, whose result goes back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from helpers.plain_training import DESCRIPTION, Plain, own_loss, rank_batch, state
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import tavq_plugin as tavq
from tavq_plugin.data.corpus import Corpus
from tavq_plugin.methods import method_class
from tavq_plugin.methods.base import Step
from tavq_plugin.text.ragged import RaggedRows
from tavq_plugin.text.store import TextStore
from tavq_plugin.types import GRANULARITIES

WORDS = ("red", "blue", "car", "dog")
TEXTS = ["a red car", "a blue dog", "a red dog", "a blue car"]


def corpus() -> Corpus:
    """Four texts whose words, phrases and sentences are all their two words; width 6."""
    lists = RaggedRows.from_lists([[0, 2], [1, 3], [0, 3], [1, 2]])
    table = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    means = {name: torch.zeros(6) for name in GRANULARITIES}
    store = TextStore(("0", "1", "2", "3"), table, WORDS, dict.fromkeys(GRANULARITIES, lists), means)
    return Corpus("words", torch.zeros(4, 3, 32, 32, dtype=torch.uint8), TEXTS, store, 4)


def compared_under_ddp(name: str, find: bool, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Three steps of a method and its tokenizer, each in DDP; rank 1 has no text."""
    images, batch = rank_batch(dist.get_rank(), without_text=True)
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    one = method_class(name)(tokenizer, corpus(), **settings)
    model = DistributedDataParallel(tokenizer, find_unused_parameters=find)
    call = DistributedDataParallel(one, find_unused_parameters=find) if list(one.parameters()) else one
    optimizer = torch.optim.Adam([*tokenizer.parameters(), *one.parameters()], lr=1e-2)
    for number in range(3):
        optimizer.zero_grad()
        output, codes = model(images)
        step = Step(number, 3, torch.arange(len(images)), images, output[0], codes, batch)
        (own_loss(output, images) + codes.loss + sum(call(step).values())).backward()
        optimizer.step()
        one.after_update(step)
    one.finish()
    return state(tokenizer, one) | {name: buffer.clone() for name, buffer in one.named_buffers()}


def moved_by_cvq() -> tuple[Tensor, Tensor]:
    """Codebook and usage after one move, by batches of two images and of one."""
    images, _ = rank_batch(dist.get_rank(), uneven=True)
    return moved(images)


def moved(images: Tensor) -> tuple[Tensor, Tensor]:
    """The same in one process."""
    tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    one = method_class("cvq")(tokenizer, corpus(), anchor="probrandom", metric="l2")
    with torch.no_grad():
        output, codes = tokenizer(images)
    one.after_update(Step(0, 1, torch.arange(len(images)), images, output[0], codes, {}))
    return tokenizer.adapter.codebook().detach().clone(), one.usage
