"""The rows of each optimizer step, determined by the seed and the step number alone, so resuming is exact."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that were renamed


class BatchSampler:
    """The rows of each step; every epoch has its own random order, and a step may span two epochs.

    >>> rows = BatchSampler(4, batch_size=2, seed=0)
    >>> sorted([*rows(0).tolist(), *rows(1).tolist()])
    [0, 1, 2, 3]
    """

    def __init__(self, n: int, *, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, number: int) -> Tensor:
        """The rows of step `number`, counted from 0; -> batch_size, int64."""
        start, end = number * self.batch_size, (number + 1) * self.batch_size
        parts = []
        while start < end:
            epoch, offset = divmod(start, self.n)
            parts.append(self._order_of(epoch)[offset : offset + end - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.n, generator=draw)
        return self._order


def rows_of_rank(rows: Tensor, *, passes: int, ranks: int, rank: int) -> list[Tensor]:
    """The rows that one rank reads in each pass; (p r b) -> p tensors of b.

    >>> [part.tolist() for part in rows_of_rank(torch.arange(8), passes=2, ranks=2, rank=1)]
    [[2, 3], [6, 7]]
    """
    if len(rows) % (passes * ranks):
        raise ValueError(
            f"batch_size {len(rows)} does not divide over {ranks} processes and accumulation={passes}: give a "
            f"batch_size that is a multiple of {passes * ranks}"
        )
    return list(rows.view(passes, ranks, -1)[:, rank])
