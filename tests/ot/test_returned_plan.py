"""`marginal_error` and `converged` are those of the plan that `solve` returns; a very small blur is named."""

import warnings

import pytest
import torch
from helpers.generators import clustered

from tavq_plugin.ot import solve


def error_of_plan(result):
    """L1 distance of the plan's unit masses from b, in float64; -> b."""
    return (result.plan().double().sum(1) - result.b.double()).abs().sum(1)


@pytest.mark.parametrize("epsilon", [0.02, 1e-3, 5e-4])
@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
def test_the_certificate_is_that_of_the_returned_plan(epsilon, schedule):
    x, y = (t.float() for t in clustered(3, 700, 40, 96, spread=0.5, repeated=True, seed=1))
    result = solve(x, y, epsilon=epsilon, schedule=schedule, max_passes=300)
    own = error_of_plan(result)
    torch.testing.assert_close(result.marginal_error.double(), own, rtol=0, atol=5e-7)
    assert torch.equal(result.converged, result.marginal_error <= 1e-5)
    if schedule == "adaptive":
        assert result.converged.all() and (own < 1.1e-5).all()


def test_what_rounding_keeps_from_the_tolerance_is_finished_in_float64():
    x, y = (t.float().requires_grad_() for t in clustered(3, 700, 40, 96, spread=0.5, repeated=True, seed=1))
    result = solve(x, y, epsilon=5e-4, max_passes=300)
    exact = solve(x.double(), y.double(), epsilon=5e-4, max_passes=300, tolerance=1e-9)
    assert result.value.dtype == result.plan().dtype == result.potentials.dtype == torch.float32
    torch.testing.assert_close(result.value.double(), exact.value, rtol=1e-5, atol=0)
    ours, theirs = (torch.autograd.grad(each.value.sum(), y)[0] for each in (result, exact))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 * theirs.abs().max().item())


def test_too_few_passes_are_not_finished_behind_the_callers_back():
    x, y = (t.float() for t in clustered(2, 300, 20, 32, spread=0.5, repeated=True))
    result = solve(x, y, epsilon=1e-3, max_passes=1)
    assert not result.converged.any()


@pytest.mark.parametrize("solver", ["newton", "sinkhorn"])
def test_a_blur_that_takes_hundreds_of_passes_is_named(solver):
    x, y = clustered(1, 60, 6, 8, spread=0.5, repeated=False)
    scale = solve(x, y, epsilon=1.0).epsilon.item()
    for options in ({"epsilon": 1e-5}, {"epsilon": 1e-5 * scale, "epsilon_mode": "absolute"}):
        with pytest.warns(UserWarning, match=r"1e-05 of a problem's cost scale.*hundreds of passes.*solver=\"emd\""):
            solve(x, y, solver=solver, max_passes=1, **options)


def test_ordinary_blurs_are_not_warned_of():
    x, y = clustered(1, 60, 6, 8, spread=0.5, repeated=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(x, y, epsilon=3e-4, max_passes=1)
        solve(x, y, epsilon=0.01, epsilon_mode="absolute", schedule="fixed")
        solve(x, y, epsilon=1e-5, solver="emd")
    assert [str(each.message) for each in caught if "passes" in str(each.message)] == []
