"""solve against POT, known answers, laws and bad input."""

import ot
import pytest
import torch
from generators import clustered, draw, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tavq_plugin.align import solve

CLOUDS = {
    "gaussian": gaussian(3, 60, 9, 5),
    "clustered": clustered(2, 200, 20, 16, spread=0.5, repeated=False),
    "repeated": clustered(2, 200, 20, 16, spread=0.5, repeated=True),
}


def exact(x, y):
    """POT's emd2, a problem at a time, with gradient."""
    uniform = [torch.full((t.shape[1],), 1 / t.shape[1], dtype=t.dtype) for t in (x, y)]
    return torch.stack([ot.emd2(*uniform, ot.dist(p, q)) for p, q in zip(x, y, strict=True)])


@pytest.mark.parametrize("name", CLOUDS)
def test_the_oracle_is_pots_emd2(name):
    x, y = (t.clone().requires_grad_() for t in CLOUDS[name])
    u, v = (t.clone().requires_grad_() for t in CLOUDS[name])
    ours, theirs = solve(x, y, solver="emd").value, exact(u, v)
    torch.testing.assert_close(ours, theirs)
    if name == "repeated":  # equal codes share a unit in any proportion: the plan, so the gradient, is not unique
        return
    ours.sum().backward(), theirs.sum().backward()
    torch.testing.assert_close(x.grad, u.grad)
    torch.testing.assert_close(y.grad, v.grad)


@pytest.mark.parametrize("name", CLOUDS)
def test_newton_tends_to_emd2_as_the_blur_vanishes(name):
    x, y = CLOUDS[name]
    truth = exact(x, y)
    gain = solve(x, y, solver="emd").gain
    errors = []
    for epsilon in (0.05, 0.005, 0.0005):
        result = solve(x, y, epsilon=epsilon, tolerance=1e-9, max_passes=300)
        assert result.converged.all()
        errors.append(((result.transport_cost - truth) / gain).abs().max().item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2e-3


def test_gradients_tend_to_emds_as_the_blur_vanishes():
    u, v = CLOUDS["gaussian"]
    grads = {}
    for solver in ("newton", "emd"):
        x, y = u.clone().requires_grad_(), v.clone().requires_grad_()
        solve(x, y, solver=solver, epsilon=5e-4, tolerance=1e-10, max_passes=400).value.sum().backward()
        grads[solver] = torch.cat([x.grad.flatten(), y.grad.flatten()])
    assert torch.cosine_similarity(grads["newton"], grads["emd"], dim=0) > 0.999


@pytest.mark.parametrize("solver", ["newton", "sinkhorn"])
def test_the_plan_is_pots_sinkhorn_plan(solver):
    x, y = CLOUDS["gaussian"]
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


def test_the_certificate_tells_of_too_few_passes():
    x, y = clustered(3, 700, 40, 96, spread=0.5, repeated=True, seed=1)
    hurried = solve(x, y, epsilon=0.002, max_passes=1)
    assert not hurried.converged.any() and (hurried.marginal_error > 1e-3).all()
    patient = solve(x, y, epsilon=0.002)
    assert patient.converged.all() and (patient.gap < hurried.gap).all()


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
def test_laws(seed, n, m):
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
def test_a_mask_is_a_removal(seed, garbage):
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


@pytest.mark.parametrize("solver", ["newton", "sinkhorn", "emd"])
@pytest.mark.parametrize("filler", [0.0, float("nan")])
def test_a_problem_without_units_is_exactly_zero(solver, filler):
    x, y = gaussian(2, 10, 4, 3)
    y[1] = filler
    x.requires_grad_(), y.requires_grad_()
    mask = torch.tensor([[True] * 4, [False] * 4])
    result = solve(x, y, y_mask=mask, solver=solver)
    gx, gy = torch.autograd.grad(result.value.sum(), (x, y))
    assert result.value[1] == 0 and (gx[1] == 0).all() and (gy[1] == 0).all() and (gx[0] != 0).any()
    assert result.converged[1]
    for name in ("transport_cost", "gain", "dual_bound", "gap", "marginal_error", "plan_entropy"):
        assert getattr(result, name)[1] == 0, name
    assert (result.plan()[1] == 0).all() and (result.potentials[1] == 0).all()
    alone = solve(x[:1], y[:1], solver=solver)
    torch.testing.assert_close(result.value[:1], alone.value)


def test_every_problem_has_its_own_blur():
    x, y = gaussian(2, 40, 6, 3)
    x[1] *= 100
    y[1] *= 100
    together = solve(x, y, tolerance=1e-9, max_passes=200)
    for i in range(2):
        alone = solve(x[i : i + 1], y[i : i + 1], tolerance=1e-9, max_passes=200)
        torch.testing.assert_close(together.value[i : i + 1], alone.value)
        torch.testing.assert_close(together.epsilon[i : i + 1], alone.epsilon)


@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e-4, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales(scale, dtype):
    x, y = (t.to(dtype) for t in gaussian(2, 40, 6, 3))
    plain, scaled = solve(x, y), solve(x * scale, y * scale)
    if dtype == torch.float32 and scale in (1e-15, 1e15):  # squares near the ends of the format
        assert scaled.value.isfinite().all()
        return
    torch.testing.assert_close(scaled.plan(), plain.plan(), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(scaled.transport_cost / scale**2, plain.transport_cost, rtol=1e-3, atol=0)


def test_extreme_weights_converge():
    x, y = gaussian(2, 80, 6, 3)
    weight = torch.tensor([[1.0, 1e-6, 1.0, 1e-6, 1.0, 1.0]]).double().expand(2, 6)
    for dtype in (torch.float64, torch.float32):
        for schedule in ("adaptive", "fixed"):
            result = solve(x.to(dtype), y.to(dtype), y_weight=weight.to(dtype), schedule=schedule)
            assert result.converged.all()


def test_points_that_coincide():
    same = torch.ones(1, 5, 3)
    for x, y in ((same, same[:, :2]), (torch.zeros(1, 4, 2), torch.zeros(1, 3, 2))):
        x = x.clone().requires_grad_()
        result = solve(x, y)
        assert result.value.item() == 0 and torch.autograd.grad(result.value, x)[0].isfinite().all()
        assert result.converged.all() and result.plan().sum().item() == pytest.approx(1)


def test_a_nan_stays_with_its_own_problem():
    x, y = gaussian(3, 20, 5, 3)
    x[1, 4, 0] = torch.nan
    x.requires_grad_()
    result = solve(x, y)
    assert result.value.isnan().tolist() == [False, True, False]
    assert result.converged.tolist() == [True, False, True]
    grad = torch.autograd.grad(result.value[[0, 2]].sum(), x)[0]
    assert grad[[0, 2]].isfinite().all()
    clean = solve(x[:1], y[:1])
    torch.testing.assert_close(result.value[:1], clean.value)


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot"])
def test_codes_projected_in_their_own_space_are_codes_projected_first(cost):
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
def test_a_large_problem_begun_on_a_sample_reaches_the_same_maximum(repeated):
    x, y = clustered(2, 3000, 24, 32, spread=0.6, repeated=repeated, seed=4)
    begun = solve(x, y, tolerance=1e-10, max_passes=300)
    whole = solve(x, y, tolerance=1e-10, max_passes=300, warm_start=torch.zeros(2, 24).double())
    assert begun.converged.all() and whole.converged.all()
    torch.testing.assert_close(begun.value, whole.value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(begun.plan(), whole.plan(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", CLOUDS)
def test_the_certificates_enclose_the_exact_cost(name):
    x, y = CLOUDS[name]
    truth = exact(x, y)
    for passes in (1, 100):
        result = solve(x, y, max_passes=passes, tolerance=1e-9)
        assert (result.dual_bound <= truth + 1e-9).all() and (truth <= result.transport_cost + 1e-9).all()
        assert (result.gap > -1e-12).all()
    assert (result.gap < 1e-8 * result.gain).all()
    oracle = solve(x, y, solver="emd")
    torch.testing.assert_close(oracle.dual_bound, oracle.transport_cost)
    assert (oracle.gap.abs() < 1e-9).all()


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indexed = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if indexed or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "unique2", "_unique2"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_fixed_schedule_reads_nothing_back():
    x, y = clustered(2, 1200, 20, 16, spread=0.5, repeated=False)
    x.requires_grad_()
    mask = torch.ones(2, 20, dtype=torch.bool)
    with Reads() as fixed:
        result = solve(x, y, y_mask=mask, schedule="fixed")
        result.value.sum().backward()
        diagnostics = [result.gap, result.transport_cost, result.gain, result.plan_entropy, result.dual_bound]
    assert fixed.names == [] and len(diagnostics) == 5
    with Reads() as adaptive:
        solve(x, y, y_mask=mask, schedule="adaptive")
    assert adaptive.names


def test_the_fixed_schedule_compiles_without_a_break():
    x, y = (t.float() for t in clustered(2, 600, 8, 16, spread=0.5, repeated=False))
    compiled = torch.compile(lambda x, y: solve(x, y, schedule="fixed").value, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), solve(x, y, schedule="fixed").value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu():
    x, y = (t.float() for t in clustered(4, 700, 40, 96, spread=0.5, repeated=True))
    near, far = solve(x, y), solve(x.cuda(), y.cuda())
    assert far.converged.all()
    torch.testing.assert_close(far.value.cpu(), near.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    x, y = (t.to(dtype).requires_grad_() for t in gaussian(2, 40, 6, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = solve(x, y)
    assert result.value.dtype == torch.float32
    torch.testing.assert_close(result.value, solve(x.float(), y.float()).value)
    result.value.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


def test_it_is_deterministic_and_a_fixed_schedule_agrees():
    x, y = CLOUDS["clustered"]
    first, again, fixed = solve(x, y), solve(x, y), solve(x, y, schedule="fixed", max_passes=30)
    assert torch.equal(first.value, again.value) and fixed.converged.all()
    torch.testing.assert_close(first.value, fixed.value, rtol=1e-3, atol=1e-5)


def test_a_warm_start_needs_few_passes():
    x, y = CLOUDS["clustered"]
    solved = solve(x, y, tolerance=1e-8, max_passes=100)
    warm = solve(x, y, tolerance=1e-6, max_passes=1, warm_start=solved.potentials)
    assert warm.converged.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x is \(2, 3, 4\) and y \(1, 2, 4\)"),
        ({"y": torch.zeros(1, 2, 5)}, "without project= both need one width"),
        ({"y": torch.zeros(1, 0, 4)}, "at least 1"),
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"cost": "cosine"}, "cost='cosine'"),
        ({"solver": "simplex"}, "solver='simplex'"),
        ({"y_mask": torch.ones(1, 3, dtype=torch.bool)}, r"y_mask is \(1, 3\)"),
        ({"y_weight": torch.tensor([[1.0, -1.0]])}, "negative mass"),
        ({"project": torch.zeros(4, 5)}, "a Linear's weight transposed"),
        ({"x": torch.zeros(1, 3, 4, dtype=torch.long)}, r"x is torch.int64: give floating point"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"max_passes": -1}, "max_passes must be 0 or more"),
        ({"schedule": "slow"}, "schedule='slow'"),
        ({"warm_start": torch.zeros(1, 3)}, r"warm_start is \(1, 3\): give potentials, \(1, 2\)"),
        ({"x_weight": torch.zeros(1, 3)}, "nothing but 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"x": torch.zeros(1, 3, 4), "y": torch.zeros(1, 2, 4)} | change
    with pytest.raises(ValueError, match=message):
        solve(arguments.pop("x"), arguments.pop("y"), **arguments)
