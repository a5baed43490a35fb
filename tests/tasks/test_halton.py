"""The Halton order against the sequence computed with fractions."""

from fractions import Fraction

import pytest
import torch

from tavq_plugin.tasks.halton import halton_order, halton_ranks
from tavq_plugin.tasks.tokens import LevelGrid, TokenLayout


def radical_inverse(number: int, base: int) -> Fraction:
    """The digits of a number, mirrored at the point."""
    value, place = Fraction(0), Fraction(1, base)
    while number:
        number, digit = divmod(number, base)
        value, place = value + digit * place, place / base
    return value


def by_fractions(height: int, width: int) -> list[int]:
    order, number = [], 1
    while len(order) < height * width:
        cell = int(radical_inverse(number, 2) * height) * width + int(radical_inverse(number, 3) * width)
        if cell not in order:
            order.append(cell)
        number += 1
    return order


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (8, 8), (9, 27), (16, 16), (5, 7), (6, 12)])
def test_the_order_is_that_of_the_exact_sequence(grid):
    order = halton_order(*grid)
    assert order.tolist() == by_fractions(*grid)
    assert order.sort().values.tolist() == list(range(grid[0] * grid[1]))


def test_the_first_places_spread_over_the_grid():
    first = halton_order(16, 16)[:16]
    blocks = {(place // 16 // 8, place % 16 // 8) for place in first.tolist()}
    assert len(blocks) == 4
    distances = torch.cdist(*2 * [torch.stack([first // 16, first % 16], 1).double()])
    assert distances.fill_diagonal_(99).min() >= 2


def test_levels_have_their_turn_one_after_the_other():
    ranks = halton_ranks(TokenLayout((LevelGrid(2, 2, 5), LevelGrid(4, 4, 3))))
    assert ranks[:4].max() < 4 <= ranks[4:].min() and ranks.sort().values.tolist() == list(range(20))
    assert ranks[:4].argsort().tolist() == by_fractions(2, 2)
