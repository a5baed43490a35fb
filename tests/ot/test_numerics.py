"""`solve` on extreme numbers, on devices, and on bad input."""

import pytest
import torch
from helpers.generators import clustered, gaussian
from torch.utils._python_dispatch import TorchDispatchMode

from tavq_plugin.ot import solve


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
def test_scaling_the_points_scales_the_cost(scale, dtype):
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


@pytest.mark.parametrize("solver", ["newton", "sinkhorn", "emd"])
@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
@pytest.mark.parametrize("cost", ["sqeuclidean", "dot"])
def test_a_batch_of_no_problems_has_an_empty_result(solver, schedule, cost):
    x, y, w = torch.zeros(0, 900, 4), torch.zeros(0, 3, 5), torch.ones(4, 5)
    for tensor in (x, y, w):
        tensor.requires_grad_()
    result = solve(x, y, project=w, solver=solver, schedule=schedule, cost=cost)
    for name in ("value", "converged", "marginal_error", "epsilon", "transport_cost", "gain", "gap", "plan_entropy"):
        assert getattr(result, name).shape == (0,), name
    assert result.plan().shape == (0, 900, 3) and result.potentials.shape == (0, 3)
    grads = torch.autograd.grad(result.value.sum(), (x, y, w))
    assert all(grad.shape == t.shape and (grad == 0).all() for grad, t in zip(grads, (x, y, w), strict=True))


class Reads(TorchDispatchMode):
    """Names of the operations that make the CPU wait for a device."""

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


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("n", [700, 2048])
def test_a_rough_fixed_schedule_reaches_its_tolerance(n, repeated):
    for spread in (0.3, 0.5, 0.6):
        x, y = (t.float() for t in clustered(4, n, 40, 96, spread=spread, repeated=repeated))
        result = solve(x, y, schedule="fixed", tolerance=1e-2)
        assert result.converged.all()


@pytest.mark.slow
def test_the_fixed_schedule_compiles_without_a_break():
    x, y = (t.float() for t in clustered(2, 600, 8, 16, spread=0.5, repeated=False))
    options = {"schedule": "fixed", "tolerance": 1e-2}  # a loose tolerance makes fewer passes to compile
    compiled = torch.compile(lambda x, y: solve(x, y, **options).value, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), solve(x, y, **options).value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu():
    x, y = (t.float() for t in clustered(4, 700, 40, 96, spread=0.5, repeated=True))
    near, far = solve(x, y), solve(x.cuda(), y.cuda())
    assert far.converged.all()
    torch.testing.assert_close(far.value.cpu(), near.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = (t.to(dtype).requires_grad_() for t in gaussian(2, 40, 6, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = solve(x, y)
    assert result.value.dtype == torch.float32
    torch.testing.assert_close(result.value, solve(x.float(), y.float()).value)
    result.value.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


def test_solve_is_deterministic_and_a_fixed_schedule_agrees():
    x, y = clustered(2, 200, 20, 16, spread=0.5, repeated=False)
    first, again, fixed = solve(x, y), solve(x, y), solve(x, y, schedule="fixed", max_passes=30)
    assert torch.equal(first.value, again.value) and fixed.converged.all()
    torch.testing.assert_close(first.value, fixed.value, rtol=1e-3, atol=1e-5)


def test_a_warm_start_needs_few_passes():
    x, y = clustered(2, 200, 20, 16, spread=0.5, repeated=False)
    solved = solve(x, y, tolerance=1e-8, max_passes=100)
    warm = solve(x, y, tolerance=1e-6, max_passes=1, warm_start=solved.potentials)
    assert warm.converged.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x is \(2, 3, 4\) and y \(1, 2, 4\)"),
        ({"y": torch.zeros(1, 2, 5)}, "without project= both need the same width"),
        ({"y": torch.zeros(1, 0, 4)}, "at least 1"),
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"epsilon": -1.0}, "epsilon must be above 0 and finite, got -1.0"),
        ({"epsilon": float("nan")}, "epsilon must be above 0 and finite, got nan"),
        (
            {"epsilon": float("inf")},
            'epsilon must be above 0 and finite, got inf; for exact transport give solver="emd"',
        ),
        ({"unit_cost": torch.zeros(1, 3)}, r"unit_cost is \(1, 3\): give \(1, 2\)"),
        ({"cost": "cosine"}, "cost='cosine'"),
        ({"solver": "simplex"}, "solver='simplex'"),
        ({"y_mask": torch.ones(1, 3, dtype=torch.bool)}, r"y_mask is \(1, 3\)"),
        ({"y_weight": torch.tensor([[1.0, -1.0]])}, "negative mass"),
        ({"project": torch.zeros(4, 5)}, "a Linear's weight transposed"),
        ({"x": torch.zeros(1, 3, 4, dtype=torch.long)}, r"x is torch.int64: give floating point"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"max_passes": 0}, "max_passes must be at least 1"),
        ({"schedule": "slow"}, "schedule='slow'"),
        ({"warm_start": torch.zeros(1, 3)}, r"warm_start is \(1, 3\): give potentials, \(1, 2\)"),
        ({"x_weight": torch.zeros(1, 3)}, "nothing but 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"x": torch.zeros(1, 3, 4), "y": torch.zeros(1, 2, 4)} | change
    with pytest.raises(ValueError, match=message):
        solve(arguments.pop("x"), arguments.pop("y"), **arguments)
