"""Lists of table rows of different lengths, and the padded units that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.moved import old_names
from tavq_plugin.types import Units

__getattr__ = old_names(__name__)  # names of the last release


@dataclass(frozen=True)
class RaggedRows:
    """The table rows of each text's units; text i has ids[offsets[i]:offsets[i + 1]].

    >>> ids, mask = RaggedRows.from_lists([[3, 1], []]).pad(torch.tensor([1, 0]))
    >>> ids.tolist(), mask.tolist()
    ([[0, 0], [3, 1]], [[False, False], [True, True]])
    """

    ids: Tensor  # int64
    offsets: Tensor  # n + 1, int64

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> RaggedRows:
        """From one list of table rows per text."""
        offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
        return cls(torch.tensor([i for ids in lists for i in ids], dtype=torch.long), offsets)

    def pad(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Table rows of some texts, padded with row 0, and their mask; rows b -> b m and b m, m at least 1."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        m = max(1, int(lengths.max())) if len(rows) else 1
        steps = torch.arange(m, device=rows.device)
        mask = steps < lengths[:, None]
        if not len(self.ids):
            return torch.zeros_like(mask, dtype=torch.long), mask
        places = (starts[:, None] + steps).clamp(max=len(self.ids) - 1)
        return self.ids[places] * mask, mask

    def subset(self, rows: Tensor) -> RaggedRows:
        """The lists of some texts."""
        ids, mask = self.pad(rows)
        return RaggedRows(ids[mask], torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)]))


def padded_units(table: Tensor, ids: Tensor, mask: Tensor, mean: Tensor | None) -> Units:
    """Table rows as padded units, centred on `mean` if it is given; ids and mask b m -> embeddings b m d."""
    if not len(table):
        return Units(torch.zeros(*ids.shape, table.shape[1], device=table.device), mask)
    vectors = table.index_select(0, ids.flatten()).float().unflatten(0, ids.shape)
    if mean is None:
        return Units(vectors.mul_(mask[..., None]), mask)
    return Units(centre(vectors, mean, mask), mask)


def centre(vectors: Tensor, mean: Tensor, mask: Tensor | None = None) -> Tensor:
    """Subtract the mean in place, L2-normalise, and set masked vectors to zero; ... d float32.

    A vector that (nearly) equals the mean, such as a corpus's only unit, is normalised without subtracting the mean.
    """
    vectors -= mean
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    at_mean = norms < 1e-2 if mask is None else mask & (norms < 1e-2)
    if at_mean.any():
        vectors[at_mean] += mean
        norms = torch.linalg.vector_norm(vectors, dim=-1)
    scale = 1 / norms.clamp(min=1e-12)
    return vectors.mul_((scale if mask is None else scale * mask)[..., None])


def opaque_rows(tensor: Tensor) -> np.ndarray:
    """Rows of a CPU tensor as single NumPy items, n d -> n; NumPy copies items six times as fast as torch rows."""
    return tensor.view(torch.uint8).numpy().view(f"V{tensor.shape[1] * tensor.element_size()}").reshape(-1)
