"""How much of a codebook is used: usage, perplexity, dead codes."""

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
    counts = torch.bincount(indices.flatten(), minlength=size).double()
    if len(counts) > size:
        raise ValueError(f"indices reach {len(counts) - 1} and the codebook has {size} codes")
    frequency = counts / counts.sum()
    entropy = -torch.special.xlogy(frequency, frequency).sum()
    used = int((counts > 0).sum())
    return CodebookUse(100 * used / size, round(entropy.exp().item(), 6), size - used)
