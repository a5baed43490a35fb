"""The order of the Halton sequence: each place is far from those that were filled just before it."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.tasks.tokens import TokenLayout

ROUNDING = 1e-9  # a coordinate this little below a place's border lies on it


def halton_order(height: int, width: int) -> Tensor:
    """The places of a grid, row by row from 0, in the order in which the Halton sequence first hits them; h·w int64.

    Base 2 runs over the rows and base 3 over the columns, from the sequence's point 1, as in "Halton scheduler for
    masked generative image transformer" (ICLR 2025). Nothing is drawn at random.

    >>> halton_order(2, 3).tolist()
    [4, 2, 3, 1, 5, 0]
    """
    from scipy.stats.qmc import Halton

    sequence = Halton(d=2, scramble=False).fast_forward(1)
    hit: dict[int, None] = {}
    while len(hit) < height * width:
        points = torch.from_numpy(sequence.random(4 * height * width))
        cells = (points * torch.tensor([height, width]) + ROUNDING).long()
        hit |= dict.fromkeys((cells[:, 0] * width + cells[:, 1]).tolist())
    return torch.tensor(list(hit))


def halton_ranks(layout: TokenLayout) -> Tensor:
    """When each place of a sequence has its turn, from 0; n int64. The decoder's level is filled before finer ones."""
    orders, start = [], 0
    for grid in layout.grids:
        orders.append(halton_order(grid.height, grid.width) + start)
        start += grid.height * grid.width
    return torch.cat(orders).argsort()
