"""The fixed schedule: its plan and gradients against an adaptive solve at a tolerance of 1e-7, in few operations."""

import pytest
import torch
from helpers.generators import clustered, gaussian
from torch.utils._python_dispatch import TorchDispatchMode

from tavq_plugin.ot import solve

PROBLEMS = {
    "gaussian": lambda seed: gaussian(3, 300, 24, 16, seed),
    "clustered": lambda seed: clustered(3, 500, 40, 64, spread=0.3, repeated=False, seed=seed),
    "repeated": lambda seed: clustered(3, 700, 40, 96, spread=0.5, repeated=True, seed=seed),
    "few codes": lambda seed: clustered(3, 64, 12, 64, spread=0.5, repeated=True, seed=seed),
}


def gradients(x, y, **options):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    result = solve(x, y, **options)
    return result, torch.autograd.grad(result.value.sum(), (x, y))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("epsilon", [0.02, 0.01])
def test_the_gradient_of_a_rough_schedule_has_the_direction_of_the_exact_one(name, epsilon):
    for seed in range(2):
        x, y = PROBLEMS[name](seed)
        rough, ours = gradients(x.float(), y.float(), epsilon=epsilon, schedule="fixed", tolerance=1e-2)
        exact, theirs = gradients(x, y, epsilon=epsilon, schedule="adaptive", tolerance=1e-7, max_passes=300)
        assert rough.converged.all() and exact.converged.all()
        for one, other in zip(ours, theirs, strict=True):
            # of each image's gradient, without the part that all of its points share
            pair = [(part - part.mean(1, keepdim=True)).double().flatten(1) for part in (one, other)]
            assert (torch.cosine_similarity(*pair) >= 0.999).all()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("epsilon", [0.05, 0.005])
def test_a_fine_schedule_reaches_the_maximum(name, epsilon):
    x, y = PROBLEMS[name](1)
    fixed = solve(x, y, epsilon=epsilon, schedule="fixed")
    adaptive = solve(x, y, epsilon=epsilon, schedule="adaptive", tolerance=1e-10, max_passes=300)
    assert fixed.converged.all()
    torch.testing.assert_close(fixed.value, adaptive.value, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fixed.potentials, adaptive.potentials, rtol=0, atol=1e-4 * adaptive.epsilon.min().item())


def test_masks_weights_and_a_nan_stay_with_their_own_problem():
    x, y = clustered(4, 300, 20, 32, spread=0.4, repeated=False)
    mask = torch.arange(20) < torch.tensor([[20], [7], [1], [20]])
    weight = torch.rand(4, 20, generator=torch.Generator().manual_seed(0)).double() ** 4 + 1e-6
    x[3, 5, 0] = torch.nan
    together = solve(x, y, y_mask=mask, y_weight=weight, schedule="fixed")
    assert together.converged.tolist() == [True, True, True, False] and together.value[3].isnan()
    for i, m in enumerate((20, 7, 1)):
        alone = solve(x[i : i + 1], y[i : i + 1, :m], y_weight=weight[i : i + 1, :m], tolerance=1e-9, max_passes=200)
        torch.testing.assert_close(together.value[i : i + 1], alone.value, rtol=1e-8, atol=1e-10)


class Operations(TorchDispatchMode):
    """How many operations other than views are dispatched."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_depends_on_the_tolerance_alone():
    counts = {}
    for name, n in (("small", 40), ("large", 3000)):
        x, y = gaussian(2, n, 6, 3)
        for tolerance in (1e-2, 1e-5):
            with Operations() as seen:
                solve(x, y, schedule="fixed", tolerance=tolerance)
            counts[name, tolerance] = seen.count
    assert counts["small", 1e-2] == counts["large", 1e-2] < 430
    assert counts["small", 1e-5] == counts["large", 1e-5] < 800
