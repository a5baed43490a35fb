"""Convolutions on the grids of a sequence, against convolutions on each picture of vectors alone."""

import pytest
import torch

from tavq_plugin.tasks.grid_convolutions import GridConvolutions
from tavq_plugin.tasks.tokens import LevelGrid

GRIDS = (LevelGrid(2, 3, 5), LevelGrid(4, 2, 7))


def test_each_grid_is_convolved_on_its_own():
    torch.manual_seed(0)
    net = GridConvolutions(GRIDS, 8).double()
    places = torch.randn(3, 14, 8, dtype=torch.double)
    expected = []
    for grid, start, convolutions in zip(GRIDS, (0, 6), net.of_grids, strict=True):
        picture = torch.zeros(3, 8, grid.height, grid.width, dtype=torch.double)
        for y in range(grid.height):
            for x in range(grid.width):
                picture[:, :, y, x] = places[:, start + y * grid.width + x]
        for layer in convolutions:
            picture = picture + layer.change(picture)
        expected += [picture[:, :, y, x] for y in range(grid.height) for x in range(grid.width)]
    torch.testing.assert_close(net(places), torch.stack(expected, 1))


def test_another_number_of_places_is_refused():
    with pytest.raises(ValueError, match="got 13 places: the grids .* have 14"):
        GridConvolutions(GRIDS, 8)(torch.zeros(1, 13, 8))
