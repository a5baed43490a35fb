"""A code that is not finite makes its own image's loss NaN, and does not change any other image's loss."""

from dataclasses import replace

import pytest
import torch
from helpers.generators import draw

import tavq_plugin as tavq
from tavq_plugin.losses import TextAlignment, merge_repeated_codes
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES

IMAGES, WIDTH, SIDES = 5, 4, (4, 2, 1)
BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def made_codes(kind):
    """Codes of equal indices are equal (kind "equal") or not ("unequal", as from a residual quantizer)."""
    table = torch.randn(3, WIDTH, generator=draw(0))
    levels = []
    for side in SIDES:
        indices = torch.randint(3, (IMAGES, side, side), generator=draw(side))
        indices[:, 0, 0] = 0  # the first code of every image
        vectors = table[indices].movedim(-1, 1)
        if kind == "unequal":
            vectors = vectors + 0.3 * torch.randn(vectors.shape, generator=draw(side + 9))
        levels.append(tavq.Level(vectors, vectors, indices, torch.zeros(())))
    return levels


def spoilt(levels, index, image, value):
    """The levels, with one number of an image's first code replaced by `value`."""
    vectors = levels[index].quantized.clone()
    vectors[image, 0, 0, 0] = value
    return [*levels[:index], replace(levels[index], quantized=vectors), *levels[index + 1 :]]


def made_texts(with_text):
    """Three units per image, for the images of these numbers only."""
    mask = torch.zeros(IMAGES, 3, dtype=torch.bool)
    mask[list(with_text)] = True
    return {
        name: tavq.Units(torch.randn(IMAGES, 3, 6, generator=draw(i)), mask) for i, name in enumerate(GRANULARITIES)
    }


def alignment(projection="mlp", **settings):
    torch.manual_seed(0)
    return TextAlignment(WIDTH, 6, projection=projection, transport=TransportSettings(schedule="fixed"), **settings)


def losses(align, levels):
    """Each image's loss: it alone has a text, all have codes."""
    codes = tavq.Codes(tuple(levels))
    return torch.stack([align(codes, made_texts([image])) for image in range(IMAGES)]).detach()


def gradients(align, levels):
    """Of the loss of all images, to each level's codes, by image."""
    leaves = [level.quantized.clone().requires_grad_() for level in levels]
    held = tuple(replace(level, quantized=leaf) for level, leaf in zip(levels, leaves, strict=True))
    loss = align(tavq.Codes(held), made_texts(range(IMAGES)))
    found = torch.autograd.grad(loss, leaves)
    return loss.detach(), torch.cat([part.flatten(1) for part in found], 1)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("image", [0, 3, 4])
@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_only_its_own_image_is_nan(kind, index, image, value):
    align, levels = alignment(), made_codes(kind)
    bad = spoilt(levels, index, image, value)
    others = torch.arange(IMAGES) != image
    before, after = losses(align, levels), losses(align, bad)
    assert before.isfinite().all() and after[image].isnan()
    torch.testing.assert_close(after[others], before[others], rtol=2e-6, atol=0)
    (_, before), (loss, after) = gradients(align, levels), gradients(align, bad)
    assert loss.isnan() and after[image].isnan().any()
    torch.testing.assert_close(after[others], before[others], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("settings", [{"projection": "linear"}, {"contrast": 0.1}], ids=lambda s: next(iter(s)))
@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_one_bad_code_makes_the_loss_of_the_batch_nan(kind, settings):
    align, levels = alignment(**settings), made_codes(kind)
    for image in range(IMAGES):
        loss, _ = gradients(align, spoilt(levels, 1, image, torch.nan))
        assert loss.isnan()


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_codes_that_are_not_finite_share_no_head(value):
    level = spoilt(made_codes("equal"), 0, 3, value)[0]
    clean = made_codes("equal")[0]
    merged, before = (merge_repeated_codes(part.quantized, part.indices) for part in (level, clean))
    bad = ~merged.distinct.isfinite().all(1)
    assert bad.sum() == 1 and torch.equal(merged.masses, before.masses) and torch.equal(merged.slot, before.slot)
    assert torch.equal(merged.distinct[~bad], before.distinct[~bad])
    assert (merged.group == merged.group[bad]).sum() == 1
    assert merged.group.unique().tolist() == list(range(int(merged.group.max()) + 1))
    together = merged.group[~bad][:, None] == merged.group[~bad]
    assert torch.equal(together, before.group[~bad][:, None] == before.group[~bad])


def test_one_images_huge_codes_do_not_hide_that_others_are_unequal():
    align, levels = alignment(), made_codes("unequal")
    huge = [replace(level, quantized=level.quantized.index_fill(0, torch.tensor([4]), 1e6)) for level in levels]
    torch.testing.assert_close(losses(align, huge)[:4], losses(align, levels)[:4], rtol=2e-6, atol=0)
