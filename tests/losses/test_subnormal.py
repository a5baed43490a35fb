"""No product of small plan entries is subnormal, and value, gradients and marginals equal the plain formula."""

import math

import pytest
import torch
from helpers.generators import clustered
from torch.utils._python_dispatch import TorchDispatchMode

from tavq_plugin.ot import solve

SPREADS = {"clustered": 0.5, "separated": 0.1}


def problem(kind, dtype, b=2, n=700, m=40):
    return (t.to(dtype).requires_grad_() for t in clustered(b, n, m, 32, spread=SPREADS[kind], repeated=False, seed=2))


class SmallestProducts(TorchDispatchMode):
    """The smallest nonzero product of two entries in each batched matrix product, by the result's shape."""

    def __init__(self):
        super().__init__()
        self.products = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("bmm", "baddbmm", "baddbmm_"):
            one, other = (part.abs().masked_fill(part == 0, 1.0).min().item() for part in args[-2:])
            shape = tuple(result.shape)
            self.products[shape] = min(self.products.get(shape, 1.0), one * other)
        return result


@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_product_of_the_hessian_or_the_backward_is_subnormal(dtype, kind, schedule):
    x, y = problem(kind, dtype)
    with SmallestProducts() as forward:
        value = solve(x, y, epsilon=0.002, schedule=schedule).value.sum()
    with SmallestProducts() as backward:
        value.backward()
    hessian, tiny = forward.products[2, 40, 40], torch.finfo(dtype).tiny
    assert hessian >= tiny
    assert set(backward.products) == {(2, 700, 32), (2, 40, 32)}
    assert min(backward.products.values()) >= tiny


def plain(x, y, potentials, blur):
    """D and the unit masses of its plan, by softmax and log-sum-exp over whole rows; b n d, b m d, b m, b -> b, b m."""
    n, m = x.shape[1], y.shape[1]
    cost = (x[:, :, None] - y[:, None]).square().sum(3)
    score = (potentials[:, None] - cost) / blur[:, None, None]
    value = potentials.mean(1) - blur * (score.logsumexp(2) - math.log(m)).mean(1)
    return value, score.softmax(2).sum(1) / n


@pytest.mark.parametrize("epsilon", [0.02, 0.002, 0.001])
@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_gradients_and_marginals_equal_the_plain_formula(dtype, kind, epsilon):
    x, y = problem(kind, dtype)
    result = solve(x, y, epsilon=epsilon, max_passes=300)
    assert result.converged.all()
    u, v = (t.detach().double().requires_grad_() for t in (x, y))
    value, marginal = plain(u, v, result.potentials.double(), result.epsilon.double())
    gradients = torch.autograd.grad(result.value.sum(), (x, y)), torch.autograd.grad(value.sum(), (u, v))
    single = dtype == torch.float32
    torch.testing.assert_close(result.value.double(), value, rtol=2e-6 if single else 1e-12, atol=0)
    rounding = 1e-6 / epsilon if single else 1e-12  # of a score, cost over blur
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=rounding * theirs.abs().max().item())
    off = (marginal - 1 / y.shape[1]).abs().sum(1)
    torch.testing.assert_close(off, result.marginal_error.double(), rtol=0, atol=rounding)
    assert (off < 1e-5 + rounding).all()
