"""The balance of two gradients, against a plain loop over images in float64, and its edge cases."""

import math

import pytest
import torch

from tavq_plugin.losses.gradient_balance import balance_gradient

SHAPE = (5, 3, 4, 2)


def drawn(seed, shape=SHAPE, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loop(a, g, ratio):
    """The same by a loop over images and entries; rows are images."""
    kept = []
    for own, host in zip(a.flatten(1).tolist(), g.flatten(1).tolist(), strict=True):
        along = sum(x * y for x, y in zip(own, host, strict=True))
        square = sum(y * y for y in host)
        share = min(0.0, along) / square if square else 0.0
        kept.append([x - share * y for x, y in zip(own, host, strict=True)])
    norm = math.sqrt(sum(x * x for row in kept for x in row))
    factor = ratio * g.norm().item() / norm
    return g + factor * torch.tensor(kept, dtype=torch.float64).view_as(g)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 2.0])
def test_it_equals_a_loop_over_images(ratio):
    a, g = drawn(0), drawn(1)
    g[2] = 0  # one image without a gradient of the host's keeps the alignment's
    torch.testing.assert_close(balance_gradient(a, g, ratio).gradient, loop(a, g, ratio), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_images_may_be_on_any_axis(axis):
    a, g = drawn(0), drawn(1)
    moved = balance_gradient(a.movedim(0, axis), g.movedim(0, axis), 0.7, images=axis).gradient
    torch.testing.assert_close(moved.movedim(axis, 0), loop(a, g, 0.7), rtol=1e-12, atol=1e-12)


def test_a_codebook_is_taken_as_a_whole():
    a, g = drawn(0, (6, 4)), drawn(1, (6, 4))
    found = balance_gradient(a, g, 0.7, images=None).gradient
    torch.testing.assert_close(found, loop(a[None], g[None], 0.7)[0], rtol=1e-12, atol=1e-12)
    vector = balance_gradient(a[0], g[0], 0.7, images=None).gradient
    torch.testing.assert_close(vector, loop(a[:1], g[:1], 0.7)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_added_has_the_norm_asked_for_and_opposes_no_image(dtype):
    a, g = drawn(0, dtype=dtype), drawn(1, dtype=dtype)
    found = balance_gradient(a, g, 0.5)
    added, eps = found.gradient - g, torch.finfo(dtype).eps
    torch.testing.assert_close(added.norm(), 0.5 * g.norm(), rtol=20 * eps, atol=0)
    assert ((a * g).flatten(1).sum(1) < 0).any()  # some images are opposed before
    assert ((added * g).flatten(1).sum(1) > -20 * eps * g.norm() ** 2).all()


def test_the_scale_of_neither_gradient_matters_to_the_other():
    a, g = drawn(0), drawn(1)
    expected = balance_gradient(a, g, 0.5).gradient
    torch.testing.assert_close(balance_gradient(1e-6 * a, 1000 * g, 0.5).gradient / 1000, expected)


def test_the_figures_are_those_before_anything_is_removed():
    a, g = drawn(0), drawn(1)
    found = balance_gradient(a, 4 * g, 0.5)
    torch.testing.assert_close(found.cosine, torch.cosine_similarity(a.flatten(), g.flatten(), dim=0))
    torch.testing.assert_close(found.ratio, a.norm() / (4 * g.norm()))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_host_gradient_that_is_zero_or_not_finite_passes_alone(value):
    a, g = drawn(0), torch.full(SHAPE, 0.0, dtype=torch.float64)
    g[1] = value
    found = balance_gradient(a, g, 0.5)
    assert not found.usable
    assert torch.equal(found.gradient.nan_to_num(7.0), g.nan_to_num(7.0))
    assert balance_gradient(a, drawn(1), 0.5).usable


@pytest.mark.parametrize("own", ["zero", "opposite"])
def test_nothing_is_added_where_nothing_remains(own):
    g = drawn(1, dtype=torch.float32)
    found = balance_gradient(torch.zeros_like(g) if own == "zero" else -3 * g, g, 0.5)
    assert torch.equal(found.gradient, g) and found.usable


def test_a_nan_of_the_alignment_is_passed_on():
    a = drawn(0)
    a[0, 0, 0, 0] = math.nan
    assert balance_gradient(a, drawn(1), 0.5).gradient.isnan().any()


def test_half_precision_is_computed_in_float32():
    a, g = drawn(0, dtype=torch.float32).bfloat16(), (300 * drawn(1, dtype=torch.float32)).half()
    found = balance_gradient(a, g, 0.5)
    assert found.gradient.dtype == torch.float16 and found.gradient.isfinite().all()
    torch.testing.assert_close(found.gradient.double(), loop(a.double(), g.double(), 0.5), rtol=1e-3, atol=1e-1)
