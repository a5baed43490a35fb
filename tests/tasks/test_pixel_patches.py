"""Pixels of each code's patch as vectors, and the helper run that codes patches by colour."""

import pytest
import torch
from helpers.task_runs import GRID, patch_runs

from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.tasks.pixel_patches import PixelPatches
from tavq_plugin.tasks.tokens import LevelGrid


def test_a_place_reads_its_own_patch_alone():
    torch.manual_seed(0)
    patches = PixelPatches(8, LevelGrid(2, 4, 5), 6)
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    changed = images.clone()
    changed[:, :, 4:, 2:4] = 255 - changed[:, :, 4:, 2:4]  # row 1, column 1: place 5
    moved = (patches(images) != patches(changed)).any(2)
    assert moved.tolist() == [[place == 5 for place in range(8)]] * 2


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of the grid"):
        PixelPatches(8, LevelGrid(3, 3, 5), 6)
    with pytest.raises(ValueError, match="3 × 8 × 8"):
        PixelPatches(8, LevelGrid(2, 2, 5), 6)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_the_helper_run_codes_what_it_decodes():
    run, data = patch_runs(n_train=4, n_eval=2)
    assert run.train.tokens.shape == (4, GRID * GRID) and len(data.held_out) == 2
    codes = run.tokenizer.encode(to_float(data.held_out.images))
    painted = to_uint8(run.tokenizer.decode(codes))
    again = run.tokenizer.encode(to_float(painted)).final.indices
    assert torch.equal(again.flatten(1), run.held_out.tokens)
