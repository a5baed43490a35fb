"""solve against POT, known answers, laws and bad input."""

import ot
import pytest
import torch
from helpers.generators import clustered, draw, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from tavq_plugin.ot import solve

POINTS = {
    "gaussian": gaussian(3, 60, 9, 5),
    "clustered": clustered(2, 200, 20, 16, spread=0.5, repeated=False),
    "repeated": clustered(2, 200, 20, 16, spread=0.5, repeated=True),
}


def exact(x, y):
    """POT's emd2 on each problem in turn, with gradient."""
    uniform = [torch.full((t.shape[1],), 1 / t.shape[1], dtype=t.dtype) for t in (x, y)]
    return torch.stack([ot.emd2(*uniform, ot.dist(p, q)) for p, q in zip(x, y, strict=True)])


@pytest.mark.parametrize("name", POINTS)
def test_emd_agrees_with_pots_emd2(name):
    x, y = (t.clone().requires_grad_() for t in POINTS[name])
    u, v = (t.clone().requires_grad_() for t in POINTS[name])
    ours, theirs = solve(x, y, solver="emd").value, exact(u, v)
    torch.testing.assert_close(ours, theirs)
    if name == "repeated":  # equal codes share a unit in any proportion, so plan and gradient are not unique
        return
    ours.sum().backward(), theirs.sum().backward()
    torch.testing.assert_close(x.grad, u.grad)
    torch.testing.assert_close(y.grad, v.grad)


@pytest.mark.parametrize("name", POINTS)
def test_newton_tends_to_emd2_as_the_blur_vanishes(name):
    x, y = POINTS[name]
    truth = exact(x, y)
    gain = solve(x, y, solver="emd").gain
    errors = []
    for epsilon in (0.05, 0.005, 0.0005):
        result = solve(x, y, epsilon=epsilon, tolerance=1e-9, max_passes=300)
        assert result.converged.all()
        errors.append(((result.transport_cost - truth) / gain).abs().max().item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2e-3


def test_gradients_tend_to_emds_as_the_blur_vanishes():
    u, v = POINTS["gaussian"]
    grads = {}
    for solver in ("newton", "emd"):
        x, y = u.clone().requires_grad_(), v.clone().requires_grad_()
        solve(x, y, solver=solver, epsilon=5e-4, tolerance=1e-10, max_passes=400).value.sum().backward()
        grads[solver] = torch.cat([x.grad.flatten(), y.grad.flatten()])
    assert torch.cosine_similarity(grads["newton"], grads["emd"], dim=0) > 0.999


@pytest.mark.parametrize("solver", ["newton", "sinkhorn"])
def test_the_plan_is_pots_sinkhorn_plan(solver):
    x, y = POINTS["gaussian"]
    result = solve(x, y, solver=solver, epsilon=2.0, epsilon_mode="absolute", tolerance=1e-12, max_passes=2000)
    for i in range(len(x)):
        a, b = torch.full((60,), 1 / 60).double(), torch.full((9,), 1 / 9).double()
        theirs = ot.sinkhorn(a, b, ot.dist(x[i], y[i]), 2.0, method="sinkhorn_log", numItermax=3000, stopThr=1e-12)
        torch.testing.assert_close(result.plan()[i], theirs, rtol=1e-6, atol=1e-10)
    kl = torch.special.xlogy(result.plan(), result.plan() * 60 * 9).sum((1, 2))
    torch.testing.assert_close(result.value, (result.plan() * torch.cdist(x, y).square()).sum((1, 2)) + 2.0 * kl)


@pytest.mark.parametrize("spread", [0.5, 0.6])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_is_right_on_strongly_clustered_problems(spread, repeated, dtype):
    x, y = (t.to(dtype) for t in clustered(3, 700, 40, 96, spread=spread, repeated=repeated, seed=1))
    result = solve(x, y)
    assert result.converged.all() and (result.marginal_error < 1e-5).all()
    reference = solve(x.double(), y.double(), tolerance=1e-13, max_passes=500)
    assert (reference.marginal_error < 1e-12).all()
    off = (result.transport_cost - reference.transport_cost).abs() / reference.gain
    assert (off < 2e-3).all()


@pytest.mark.parametrize("repeated", [False, True])
def test_the_fixed_schedule_is_right_on_strongly_clustered_problems(repeated):
    x, y = (t.float() for t in clustered(6, 700, 40, 96, spread=0.5, repeated=repeated, seed=3))
    result = solve(x, y, schedule="fixed")
    assert result.converged.all() and (result.gap < 1e-4 * result.gain).all()
    truth = solve(x.double(), y.double(), tolerance=1e-12, max_passes=500)
    torch.testing.assert_close(result.value.double(), truth.value, rtol=1e-5, atol=1e-6)


def test_the_certificate_shows_too_few_passes():
    x, y = clustered(3, 700, 40, 96, spread=0.5, repeated=True, seed=1)
    one_pass = solve(x, y, epsilon=0.002, max_passes=1)
    assert not one_pass.converged.any() and (one_pass.marginal_error > 1e-3).all()
    many_passes = solve(x, y, epsilon=0.002)
    assert many_passes.converged.all() and (many_passes.gap < one_pass.gap).all()


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot"])
def test_gradcheck_of_the_entropic_value(cost):
    x, y = gaussian(2, 7, 4, 3)
    a, b = torch.rand(2, 7, generator=draw(3)).double() + 0.1, torch.rand(2, 4, generator=draw(4)).double() + 0.1
    for tensor in (x, y, a, b):
        tensor.requires_grad_()

    def value(x, y, a, b):
        options = dict(epsilon=0.5, epsilon_mode="absolute", tolerance=1e-13, max_passes=200, cost=cost)
        return solve(x, y, x_weight=a, y_weight=b, **options).value

    assert torch.autograd.gradcheck(value, (x, y, a, b))


def test_two_gaussians_tend_to_the_closed_form():
    # W² of N(0, 1) and N(3, 2²) is 3² + (2 − 1)² = 10; the units are 60 equal-mass quantiles of the second
    levels = (torch.arange(60).double() + 0.5) / 60
    y = (3 + 2 * torch.special.ndtri(levels)).view(1, 60, 1).expand(20, 60, 1)
    errors = []
    for n in (50, 2000):
        x = torch.randn(20, n, 1, generator=draw(0)).double()
        errors.append((solve(x, y, epsilon=0.002, max_passes=200).transport_cost - 10).abs().mean().item())
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.2


def test_two_diracs_cost_their_distance():
    x, y = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, 6.0]]])
    result = solve(x, y)
    assert result.value.item() == pytest.approx(25) and result.transport_cost.item() == pytest.approx(25)
    assert result.gain.item() == 0 and result.plan_entropy.item() == 1


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)))
def test_a_known_matching_is_found(order):
    points = torch.eye(6, dtype=torch.float64)[None]
    result = solve(points, points[:, list(order)], epsilon=1e-3)
    assert result.transport_cost.item() < 1e-6 and result.plan_entropy.item() < 1e-6
    assert result.plan()[0].argmax(0).tolist() == list(order)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), m=st.integers(1, 9))
def test_invariances_and_bounds(seed, n, m):
    x, y = gaussian(2, n, m, 4, seed)
    result = solve(x, y, tolerance=1e-8, max_passes=200)
    rows, columns = torch.randperm(n, generator=draw(seed)), torch.randperm(m, generator=draw(seed + 1))
    permuted = solve(x[:, rows], y[:, columns], tolerance=1e-8, max_passes=200)
    torch.testing.assert_close(permuted.value, result.value)
    torch.testing.assert_close(permuted.plan(), result.plan()[:, rows][:, :, columns], rtol=1e-4, atol=1e-7)
    moved = solve(x + 1e3, y + 1e3, tolerance=1e-8, max_passes=200)
    torch.testing.assert_close(moved.value, result.value, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(result.plan().sum(2), torch.full((2, n), 1 / n).double())
    assert (result.gap > -1e-9).all() and (result.gain > -1e-9).all()
    assert (result.plan_entropy >= 0).all() and (result.plan_entropy <= 1 + 1e-9).all()
    costs = [solve(x, y, epsilon=e, tolerance=1e-9, max_passes=300).transport_cost for e in (0.02, 0.2, 2.0)]
    assert (costs[0] <= costs[1] + 1e-7).all() and (costs[1] <= costs[2] + 1e-7).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), garbage=st.sampled_from([float("nan"), 1e4, float("inf"), 0.0]))
def test_masking_points_equals_removing_them(seed, garbage):
    x, y = gaussian(1, 12, 6, 4, seed)
    keep_x, keep_y = torch.rand(12, generator=draw(seed)) < 0.6, torch.rand(6, generator=draw(seed + 1)) < 0.6
    keep_x[0] = keep_y[0] = True
    padded_x, padded_y = x.clone(), y.clone()
    padded_x[:, ~keep_x] = garbage
    padded_y[:, ~keep_y] = garbage
    padded_x.requires_grad_(), padded_y.requires_grad_()
    result = solve(padded_x, padded_y, x_mask=keep_x[None], y_mask=keep_y[None], tolerance=1e-9, max_passes=200)
    removed = solve(x[:, keep_x], y[:, keep_y], tolerance=1e-9, max_passes=200)
    torch.testing.assert_close(result.value, removed.value)
    torch.testing.assert_close(result.transport_cost, removed.transport_cost)
    torch.testing.assert_close(result.plan_entropy, removed.plan_entropy)
    torch.testing.assert_close(result.dual_bound, removed.dual_bound)
    gx, gy = torch.autograd.grad(result.value.sum(), (padded_x, padded_y))
    assert (gx[:, ~keep_x] == 0).all() and (gy[:, ~keep_y] == 0).all() and gx.isfinite().all() and gy.isfinite().all()


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot"])
def test_project_gives_the_result_of_projecting_the_codes_first(cost):
    x, _ = gaussian(2, 30, 5, 7)
    _, y = gaussian(2, 30, 5, 4, seed=1)
    w = torch.randn(7, 4, generator=draw(2)).double()
    a, b = torch.rand(2, 30, generator=draw(3)).double(), torch.rand(2, 5, generator=draw(4)).double()
    x_mask, y_mask = torch.rand(2, 30, generator=draw(5)) < 0.8, torch.ones(2, 5, dtype=torch.bool)
    y_mask[1, 3:] = False
    x = x.masked_fill(~x_mask[..., None], torch.nan)
    options = dict(x_mask=x_mask, y_mask=y_mask, cost=cost, tolerance=1e-11, max_passes=300)
    grads, results = [], []
    for through in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, y, w, a, b)]
        u, v, p, mass, units = leaves
        clean = u if through else u.masked_fill(~x_mask[..., None], 0.0) @ p
        result = solve(clean, v, project=p if through else None, x_weight=mass, y_weight=units, **options)
        grads.append(torch.autograd.grad((result.value * torch.tensor([1.0, 2.0])).sum(), leaves))
        results.append(result)
    for name in ("value", "transport_cost", "gain", "dual_bound", "gap", "potentials", "epsilon"):
        ours, theirs = (getattr(result, name) for result in results)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=name)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs.nan_to_num(0.0), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot"])
def test_gradcheck_through_the_projection(cost):
    x, _ = gaussian(2, 7, 4, 3)
    y = torch.randn(2, 4, 2, generator=draw(1)).double()
    w = torch.randn(3, 2, generator=draw(2)).double()
    options = dict(epsilon=0.5, epsilon_mode="absolute", tolerance=1e-13, max_passes=200, cost=cost)
    leaves = [t.requires_grad_() for t in (x, y, w)]
    assert torch.autograd.gradcheck(lambda x, y, w: solve(x, y, project=w, **options).value, leaves)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_large_problem_that_starts_on_a_sample_reaches_the_same_maximum(repeated):
    x, y = clustered(2, 3000, 24, 32, spread=0.6, repeated=repeated, seed=4)
    sampled = solve(x, y, tolerance=1e-10, max_passes=300)
    whole = solve(x, y, tolerance=1e-10, max_passes=300, warm_start=torch.zeros(2, 24).double())
    assert sampled.converged.all() and whole.converged.all()
    torch.testing.assert_close(sampled.value, whole.value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sampled.plan(), whole.plan(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("solver", ["newton", "sinkhorn", "emd"])
def test_a_cost_of_units_is_added_to_every_codes_cost(solver):
    """−x·y − ½ |y|² is −[x, 1]·[y, ½ |y|²]: the same problem, with the cost in the points."""
    x, y = gaussian(2, 30, 5, 4)
    a, own = torch.rand(2, 30, generator=draw(3)).double() + 0.1, 0.5 * y.square().sum(2)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    wide = torch.cat([x, torch.ones(2, 30, 1)], 2), torch.cat([y, own[..., None]], 2)
    options = dict(x_weight=a, y_mask=mask, cost="dot", solver=solver, tolerance=1e-11, max_passes=3000)
    a.requires_grad_()
    ours, theirs = solve(x, y, unit_cost=-own, **options), solve(*wide, **options)
    for name in ("value", "transport_cost", "gain", "dual_bound", "epsilon", "potentials"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-8, atol=1e-9, msg=name)
    torch.testing.assert_close(*(torch.autograd.grad(each.value.sum(), a)[0] for each in (ours, theirs)))


@pytest.mark.parametrize("name", POINTS)
def test_the_certificates_enclose_the_exact_cost(name):
    x, y = POINTS[name]
    truth = exact(x, y)
    for passes in (1, 100):
        result = solve(x, y, max_passes=passes, tolerance=1e-9)
        assert (result.dual_bound <= truth + 1e-9).all() and (truth <= result.transport_cost + 1e-9).all()
        assert (result.gap > -1e-12).all()
    assert (result.gap < 1e-8 * result.gain).all()
    oracle = solve(x, y, solver="emd")
    torch.testing.assert_close(oracle.dual_bound, oracle.transport_cost)
    assert (oracle.gap.abs() < 1e-9).all()
