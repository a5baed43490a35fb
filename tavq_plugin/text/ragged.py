"""Lists of table rows of different lengths, and the rows they name as padded units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.types import Units


@dataclass(frozen=True)
class Ragged:
    """For every text the table rows of its units: text i has ids[offsets[i]:offsets[i + 1]].

    >>> ids, mask = Ragged.of([[3, 1], []]).take(torch.tensor([1, 0]))
    >>> ids.tolist(), mask.tolist()
    ([[0, 0], [3, 1]], [[False, False], [True, True]])
    """

    ids: Tensor  # int64
    offsets: Tensor  # n + 1, int64

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """From one list of table rows a text."""
        offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
        return cls(torch.tensor([i for ids in lists for i in ids], dtype=torch.long), offsets)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Padded table rows and their mask, b m; m is at least 1 and padding points at row 0."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        m = max(1, int(lengths.max())) if len(rows) else 1
        steps = torch.arange(m, device=rows.device)
        mask = steps < lengths[:, None]
        if not len(self.ids):
            return torch.zeros_like(mask, dtype=torch.long), mask
        places = (starts[:, None] + steps).clamp(max=len(self.ids) - 1)
        return self.ids[places] * mask, mask

    def subset(self, rows: Tensor) -> Ragged:
        """The lists of some texts."""
        ids, mask = self.take(rows)
        return Ragged(ids[mask], torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)]))


def gather(table: Tensor, ids: Tensor, mask: Tensor, mean: Tensor | None) -> Units:
    """Rows of a table as padded units; ids and mask b m -> embeddings b m d, centred on `mean` if given."""
    if not len(table):
        return Units(torch.zeros(*ids.shape, table.shape[1], device=table.device), mask)
    vectors = table.index_select(0, ids.flatten()).float().unflatten(0, ids.shape)
    if mean is None:
        return Units(vectors.mul_(mask[..., None]), mask)
    return Units(centre(vectors, mean, mask), mask)


def centre(vectors: Tensor, mean: Tensor, mask: Tensor | None = None) -> Tensor:
    """Vectors less their mean, L2-normalised, zero where masked, in place; ... d float32.

    A unit that equals the mean (the only one of its corpus) has no direction left and stays as it was.
    """
    vectors -= mean
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    alone = norms < 1e-2 if mask is None else mask & (norms < 1e-2)
    if alone.any():
        vectors[alone] += mean
        norms = torch.linalg.vector_norm(vectors, dim=-1)
    scale = 1 / norms.clamp(min=1e-12)
    return vectors.mul_((scale if mask is None else scale * mask)[..., None])


def records(tensor: Tensor) -> np.ndarray:
    """Rows of a tensor on the CPU as opaque records, n: NumPy moves those six times as fast as torch moves rows."""
    return tensor.view(torch.uint8).numpy().view(f"V{tensor.shape[1] * tensor.element_size()}").reshape(-1)
