"""Holes: which places they hide, what stays exact, and PSNR inside them."""

import math

import pytest
import torch
from helpers.task_runs import patch_runs

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.completion import complete, drawn_holes, hidden_places, pasted, psnr_inside
from tavq_plugin.tasks.masked_model import MaskedModel
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import LevelGrid, TokenLayout


def test_a_place_is_hidden_if_one_of_its_pixels_is():
    layout = TokenLayout((LevelGrid(2, 2, 5), LevelGrid(4, 4, 3)))
    holes = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.05
    hidden = hidden_places(layout, holes)
    for hole, row in zip(holes, hidden, strict=True):
        by_loop = [
            bool(hole[y * step : (y + 1) * step, x * step : (x + 1) * step].any())
            for side, step in ((2, 4), (4, 2))
            for y in range(side)
            for x in range(side)
        ]
        assert row.tolist() == by_loop


def test_holes_have_every_shape_and_leave_something():
    holes = drawn_holes(9, 16, seed=0)
    shares = holes.flatten(1).float().mean(1)
    torch.testing.assert_close(shares[0::3], torch.full((3,), 0.25))
    torch.testing.assert_close(shares[1::3], torch.full((3,), 0.5))
    assert ((shares[2::3] > 0.2) & (shares[2::3] < 0.4)).all()
    assert torch.equal(holes, drawn_holes(9, 16, seed=0)) and not torch.equal(holes[2], holes[5])


def test_psnr_is_that_of_the_hole_alone():
    draw = torch.Generator().manual_seed(0)
    made, images = (torch.randint(0, 256, (3, 3, 4, 4), generator=draw, dtype=torch.uint8) for _ in range(2))
    holes = torch.rand(3, 4, 4, generator=draw) < 0.5
    for row, value in enumerate(psnr_inside(made, images, holes).tolist()):
        inside = [
            (int(made[row, c, y, x]) - int(images[row, c, y, x])) ** 2
            for c in range(3)
            for y, x in holes[row].nonzero().tolist()
        ]
        assert value == pytest.approx(10 * math.log10(255**2 / (sum(inside) / len(inside))), rel=1e-5)
    assert psnr_inside(images, images, holes).isfinite().all()


def test_pixels_outside_the_hole_stay_exact():
    run, data = patch_runs()
    with drawn_from(0):
        model = MaskedModel(run.train, ModelSettings(32, 2, 2)).eval()
    images, holes = data.held_out.images, drawn_holes(12, 16, seed=0)
    made = complete(run, model, images, run.held_out.tokens, holes)
    outside = ~holes[:, None].expand_as(images)
    assert torch.equal(made[outside], images[outside]) and not torch.equal(made, images)
    assert torch.equal(pasted(images, images, holes), images)
    with pytest.raises(ValueError, match="holes of shape"):
        complete(run, model, images, run.held_out.tokens, holes[:, :8])
