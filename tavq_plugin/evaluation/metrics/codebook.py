"""How much of a codebook is used: usage, perplexity, dead codes; over all processes where there are several."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CodebookUse(NamedTuple):
    """Counts over a set of images."""

    usage: float  # percent of the codes that occur
    perplexity: float  # exp of the entropy of the codes' frequencies; k where all are alike
    dead: int  # codes that never occur


def codebook_use(indices: Tensor, size: int) -> CodebookUse:
    """Usage, perplexity and dead codes of a codebook of `size` codes; any shape of indices.

    >>> codebook_use(torch.tensor([0, 1, 1, 0]), size=4)
    CodebookUse(usage=50.0, perplexity=2.0, dead=2)
    """
    return use_of(code_counts(indices, size))


def code_counts(indices: Tensor, size: int) -> Tensor:
    """How often each code occurs; any shape -> k int64. Raises ValueError where an index is outside the codebook."""
    counts = torch.bincount(indices.flatten(), minlength=size)
    if len(counts) > size:
        raise ValueError(f"indices reach {len(counts) - 1} and the codebook has {size} codes")
    return counts


def over_processes(counts: Tensor) -> Tensor:
    """The same counts added up over the processes of `torch.distributed`; themselves where there is one; k -> k."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def use_of(counts: Tensor) -> CodebookUse:
    """Usage, perplexity and dead codes of counts, k; ValueError where nothing was counted.

    >>> use_of(torch.tensor([5, 5, 0, 0]))
    CodebookUse(usage=50.0, perplexity=2.0, dead=2)
    """
    if not counts.sum():
        raise ValueError("no code was counted: give the indices of at least one image")
    frequency = counts.double() / counts.sum()
    entropy = -torch.special.xlogy(frequency, frequency).sum()
    used = int((counts > 0).sum())
    return CodebookUse(100 * used / len(counts), round(entropy.exp().item(), 6), len(counts) - used)
