"""Codes to tokens and back."""

import pytest
import torch

from tavq_plugin.tasks.tokens import LevelGrid, TokenLayout

LAYOUT = TokenLayout((LevelGrid(2, 2, 5), LevelGrid(4, 2, 3)))


def test_tokens_give_back_the_indices_and_levels_share_none():
    draw = torch.Generator().manual_seed(0)
    indices = [torch.randint(grid.codes, (3, grid.height, grid.width), generator=draw) for grid in LAYOUT.grids]
    tokens = LAYOUT.flatten(indices)
    assert tokens.shape == (3, LAYOUT.length) and int(tokens[:, :4].max()) < 5 <= int(tokens[:, 4:].min())
    for ours, theirs in zip(LAYOUT.unflatten(tokens), indices, strict=True):
        assert torch.equal(ours, theirs)
    assert LAYOUT.allowed()[torch.arange(LAYOUT.length), tokens].all()


def test_what_a_place_cannot_hold_is_refused():
    tokens = LAYOUT.flatten([torch.zeros(1, 2, 2).long(), torch.zeros(1, 4, 2).long()])
    tokens[0, 0] = 6
    with pytest.raises(ValueError, match="no code of its level"):
        LAYOUT.unflatten(tokens)
    with pytest.raises(ValueError, match="codebook of 5 codes"):
        LAYOUT.flatten([torch.full((1, 2, 2), 5), torch.zeros(1, 4, 2).long()])
    with pytest.raises(ValueError, match="places"):
        LAYOUT.flatten([torch.zeros(1, 3, 2).long(), torch.zeros(1, 4, 2).long()])
