"""How much of a codebook is used: usage, perplexity and dead codes, in one process or over several."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CodebookUse(NamedTuple):
    """Counts over a set of images."""

    usage: float  # percent of the codes that occur
    perplexity: float  # exp of the entropy of the codes' frequencies; k if all codes are equally frequent
    dead: int  # codes that never occur


def codebook_use(indices: Tensor, size: int) -> CodebookUse:
    """Usage, perplexity and dead codes of a codebook of `size` codes; any shape of indices.

    >>> codebook_use(torch.tensor([0, 1, 1, 0]), size=4)
    CodebookUse(usage=50.0, perplexity=2.0, dead=2)
    """
    return codebook_use_from_counts(code_counts(indices, size))


def code_counts(indices: Tensor, size: int) -> Tensor:
    """How often each of k codes occurs; any shape -> k int64. Raises ValueError for an index outside the codebook."""
    counts = torch.bincount(indices.flatten(), minlength=size)
    if len(counts) > size:
        raise ValueError(f"indices reach {len(counts) - 1} and the codebook has {size} codes: give its real size")
    return counts


def sum_over_processes(counts: Tensor) -> Tensor:
    """Counts summed over the processes of `torch.distributed`; unchanged in a single process; k -> k."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def codebook_use_from_counts(counts: Tensor) -> CodebookUse:
    """Usage, perplexity and dead codes from counts, k. Raises ValueError if all counts are 0.

    >>> codebook_use_from_counts(torch.tensor([5, 5, 0, 0]))
    CodebookUse(usage=50.0, perplexity=2.0, dead=2)
    """
    if not counts.sum():
        raise ValueError("no code was counted: give the indices of at least one image")
    frequency = counts.double() / counts.sum()
    entropy = -torch.special.xlogy(frequency, frequency).sum()
    used = int((counts > 0).sum())
    return CodebookUse(100 * used / len(counts), round(entropy.exp().item(), 6), len(counts) - used)
