"""The alignment in bfloat16 and in float64, as `to` asks; the gradient of the whole loss against finite differences."""

import warnings
from dataclasses import replace

import pytest
import torch
from helpers.generators import draw

import tavq_plugin as tavq
from tavq_plugin.losses import TextAlignment
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES

WIDTH, TEXT, IMAGES, SIDES = 4, 5, 2, (3, 2, 1)
DISTRIBUTIONS = ["all", "gaussian", "gaussian-full", "moments", "moments-full", "subsample"]


def made_codes(dtype):
    table, levels = torch.randn(3, WIDTH, generator=draw(0), dtype=torch.float64), []
    for side in SIDES:
        indices = torch.randint(3, (IMAGES, side, side), generator=draw(side))
        vectors = table[indices].movedim(-1, 1).to(dtype).contiguous().requires_grad_()
        levels.append(tavq.Level(vectors, vectors, indices, torch.zeros((), dtype=dtype)))
    return tavq.Codes(tuple(levels))


def made_texts(dtype):
    mask = torch.tensor([[True, True, True], [True, True, False]])
    drawn = (torch.randn(IMAGES, 3, TEXT, generator=draw(9 + i), dtype=torch.float64) for i in range(3))
    return {name: tavq.Units(each.to(dtype), mask) for name, each in zip(GRANULARITIES, drawn, strict=True)}


def alignment(dtype, **settings):
    torch.manual_seed(0)
    return TextAlignment(WIDTH, TEXT, samples=4, **settings).to(dtype)


@pytest.mark.parametrize("contrast_on", ["pooled", "transport"])
@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_gradcheck_of_the_whole_loss(projection, contrast_on):
    exact = TransportSettings(epsilon=0.5, epsilon_mode="absolute", tolerance=1e-10, max_passes=50)
    settings = dict(contrast=0.3, contrast_on=contrast_on, temperature=1.0, projection=projection)
    align, codes = alignment(torch.float64, transport=exact, **settings), made_codes(torch.float64)
    heads = list(align.project.parameters())
    vectors = [level.quantized for level in codes.levels]
    texts = made_texts(torch.float64)

    def loss(*leaves):
        held = (replace(level, quantized=leaf) for level, leaf in zip(codes.levels, leaves, strict=False))
        return align(tavq.Codes(tuple(held)), texts)

    assert loss(*vectors).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (*vectors, *heads), fast_mode=True)


@pytest.mark.parametrize("of_codes", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_heads_dtype_is_what_to_asks(dtype, distribution, of_codes):
    align = alignment(dtype, distribution=distribution, contrast=0.1)
    codes, texts = made_codes(of_codes), made_texts(torch.float32)
    loss = align(codes, texts)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite()
    if distribution == "all":  # the others draw
        reference = alignment(torch.float32, contrast=0.1)(made_codes(torch.float32), texts)
        torch.testing.assert_close(loss.float(), reference, rtol=3e-2, atol=3e-2)
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in align.project.parameters())
    assert all(level.quantized.grad.dtype == of_codes for level in codes.levels)


def test_float64_is_not_degraded_to_float32():
    align, codes, texts = alignment(torch.float64), made_codes(torch.float64), made_texts(torch.float64)
    moved = [replace(level, quantized=level.quantized * (1 + 1e-10)) for level in codes.levels]
    assert align(codes, texts) != align(tavq.Codes(tuple(moved)), texts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_plan_and_points_of_a_level(dtype):
    align, codes, texts = alignment(dtype), made_codes(torch.float32), made_texts(torch.float32)
    wide = torch.promote_types(dtype, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = align.match(codes.levels[0].quantized, texts["word"], 0).plan()
        points = align.embed(codes.levels[0].quantized, 0)
    assert plan.dtype == points.dtype == wide
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(IMAGES, dtype=wide))
    torch.testing.assert_close(points.norm(dim=2), torch.ones(IMAGES, SIDES[0] ** 2, dtype=wide))
