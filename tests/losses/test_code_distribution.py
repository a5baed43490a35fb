"""The distributions of a level's codes: moments, gradients, strata."""

import pytest
import torch
from helpers.generators import clustered, draw

from tavq_plugin.losses import CodeDistribution, GaussianCodes, coarse, stratified
from tavq_plugin.ot import solve


def test_all_is_every_code_in_raster_order():
    codes = torch.randn(2, 3, 4, 5)
    points = CodeDistribution("all", width=3)(codes)
    assert torch.equal(points[1, 7], codes[1, :, 1, 2]) and points.shape == (2, 20, 3)


def test_gaussian_samples_start_with_the_codes_own_moments():
    torch.manual_seed(0)
    codes = torch.randn(2, 500, 3) * torch.tensor([1.0, 2.0, 0.1]) + torch.tensor([0.0, -1.0, 4.0])
    model = GaussianCodes(3, samples=20000)
    mean, deviation = model.moments(codes)
    torch.testing.assert_close(mean, codes.mean(1))
    torch.testing.assert_close(deviation, codes.std(1, correction=0))
    samples = model(codes, draw(1))
    torch.testing.assert_close(samples.mean(1), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(1), deviation, rtol=0.03, atol=0)


def test_full_covariance_samples_have_the_codes_covariance():
    torch.manual_seed(0)
    codes = torch.randn(2, 400, 3) @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 0.2]])
    samples = GaussianCodes(3, samples=40000, covariance="full")(codes, draw(1))
    for i in range(2):
        torch.testing.assert_close(samples[i].T.cov(), codes[i].T.cov(correction=0), atol=0.02, rtol=0.02)
    assert CodeDistribution("moments-full", width=3).gaussian.head is None


@pytest.mark.parametrize("learned", [True, False])
def test_gradcheck_of_full_covariance(learned):
    codes = torch.randn(1, 6, 2, generator=draw(0)).double().requires_grad_()
    model = GaussianCodes(2, samples=4, covariance="full", learned=learned).double()
    assert torch.autograd.gradcheck(lambda c: model(c, draw(2)), codes)


def test_coarse_comes_close_to_the_gradient_of_all_codes():
    torch.manual_seed(0)
    x, y = clustered(2, 1024, 12, 16, spread=0.6, repeated=False)
    x.requires_grad_()
    whole = torch.autograd.grad(solve(x, y).value.sum(), x)[0]
    cosines = []
    for passes in (1, 50):
        result = coarse(x, y, grid=(32, 32), samples=64, passes=passes)
        grad = torch.autograd.grad(result.value.sum(), x)[0]
        cosines.append(torch.cosine_similarity(grad.flatten(), whole.flatten(), dim=0).item())
    assert 0.9 < cosines[0] < 1 - 1e-4 and cosines[1] > 1 - 1e-9


def test_gaussian_gradient_is_the_reparameterised_one():
    codes = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    model = GaussianCodes(2, samples=4).double()
    assert torch.autograd.gradcheck(lambda c: model(c, draw(2)), codes)
    model(codes, draw(2)).square().sum().backward()
    assert model.head.weight.grad.norm() > 0 and model.head.bias.grad.norm() > 0


def test_constant_codes_have_finite_gradients():
    codes = torch.ones(1, 6, 2, requires_grad=True)
    GaussianCodes(2, samples=4)(codes).sum().backward()
    assert codes.grad.isfinite().all()


@pytest.mark.parametrize(("samples", "size"), [(16, (8, 8)), (8, (8, 4)), (6, (7, 5)), (64, (9, 9))])
def test_a_stratified_subsample_has_one_code_per_cell(samples, size):
    h, w = size
    places = torch.arange(h * w).view(1, 1, h, w).expand(3, 1, h, w)
    samples_drawn = [stratified(places, samples, draw(seed)).flatten(1) for seed in range(60)]
    for part in samples_drawn:
        assert part.shape == (3, samples)
        assert all(len(row.unique()) == samples for row in part)  # no replacement
    cells = torch.stack(samples_drawn).flatten(0, 1)
    assert all(not set(cells[:, i].tolist()) & set(cells[:, i + 1].tolist()) for i in range(samples - 1))
    assert len(cells.unique()) > 0.9 * h * w  # every code is drawn at times


def test_more_samples_than_codes_give_all_codes():
    codes = torch.randn(2, 3, 4, 4)
    assert torch.equal(stratified(codes, 99), CodeDistribution("all", width=3)(codes))


def test_a_generator_makes_samples_repeatable():
    codes = torch.randn(2, 3, 8, 8)
    for kind in ("gaussian", "subsample"):
        model = CodeDistribution(kind, width=3, samples=16)
        assert torch.equal(model(codes, draw(5)), model(codes, draw(5)))
        assert not torch.equal(model(codes, draw(5)), model(codes, draw(6)))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="distribution='normal'"):
        CodeDistribution("normal", width=3)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        CodeDistribution("gaussian", width=3, samples=0)
    with pytest.raises(ValueError, match="covariance='round'"):
        GaussianCodes(3, samples=4, covariance="round")
    with pytest.raises(ValueError, match="17 samples do not divide a 8 × 8 grid"):
        stratified(torch.zeros(1, 1, 8, 8), 17)
