"""`solve`: optimal transport between many codes and a few text units, batched, masked and differentiable.

It is usable without the rest of the plug-in. x and y are batches of point clouds; each image is one problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from tavq_plugin.ot.value import EntropicValue, SolverSettings

COSTS = ("sqeuclidean", "dot")
SOLVERS = ("newton", "sinkhorn", "emd")


@dataclass(frozen=True)
class TransportSettings:
    """How codes and text are matched: the arguments of `solve`, with a looser tolerance for training.

    Raises ValueError for an unknown name or a number out of range.
    """

    solver: str = "newton"  #: "newton" | "sinkhorn" | "emd"
    cost: str = "sqeuclidean"  #: "sqeuclidean" | "dot"
    #: entropic blur, as a share of each problem's own cost scale (or absolute); below 3e-4 of it passes are hundreds
    epsilon: float = 0.02
    epsilon_mode: str = "relative"  #: "relative" | "absolute"
    #: "adaptive" | "fixed"; None: adaptive on a CPU, fixed elsewhere. With "fixed" nothing is read back from the
    #: device: every place's code is a point of the alignment then, where "adaptive" merges the repeated ones
    schedule: str | None = None
    #: L1 marginal error at which a problem stops; the gradient's error is of that size, far below batch noise
    tolerance: float = 1e-2
    max_passes: int = 100  #: over the codes at the target blur, at most

    def __post_init__(self) -> None:
        _check_settings(**vars(self))

    def is_adaptive(self, device: torch.device) -> bool:
        """Whether the schedule is adaptive on a device."""
        return _is_adaptive(self.schedule, device)


@dataclass(frozen=True)
class Transport:
    """The solution of a batch of problems. Only `value` has a gradient; the properties are computed when read.

    C is the cost. `reduced` is the cost without the part that all units of a code share, which cannot change the plan.
    """

    value: Tensor  #: b, differentiable: F_ε = min ⟨P, C⟩ + ε KL(P | a bᵀ) (newton, sinkhorn), or the exact cost (emd)
    potentials: Tensor  #: b m, of the units, mean 0 under their masses
    epsilon: Tensor  #: b, absolute
    marginal_error: Tensor  #: b, L1 distance of the plan's unit masses from b
    converged: Tensor  #: b bool, the marginal error is within the tolerance
    a: Tensor  #: b n, masses of the codes; all 0 for a problem without units
    b: Tensor  #: b m
    reduced: Tensor  #: b m n
    constant: Tensor  #: b, Σ a (C − reduced)
    _conditional: Tensor  # b m n, each code's plan over the units

    def plan(self) -> Tensor:
        """The transport plan, rows summing to the codes' masses; b n m."""
        return self._conditional.mT * self.a[..., None]

    @cached_property
    def _feasible(self) -> Tensor:
        """The plan rounded to both marginals (Altschuler et al. 2017, alg. 2); b m n."""
        plan = self._conditional * self.a[:, None]
        plan = plan * (self.b / plan.sum(2).clamp(min=1e-30)).clamp(max=1.0)[..., None]
        codes = (self.a - plan.sum(1)).clamp(min=0)
        units = (self.b - plan.sum(2)).clamp(min=0)
        return plan + units[..., None] * (codes / codes.sum(1, keepdim=True).clamp(min=1e-30))[:, None]

    @cached_property
    def _feasible_cost(self) -> Tensor:
        """⟨P, reduced⟩ of the rounded plan; b. Without Σ a |x|², so that small differences keep their digits."""
        return torch.linalg.vecdot(self._feasible.flatten(1), self.reduced.flatten(1))

    @cached_property
    def transport_cost(self) -> Tensor:
        """⟨P, C⟩ of the plan, rounded to both marginals; b. Never below the exact cost."""
        return self._feasible_cost + self.constant

    @cached_property
    def gain(self) -> Tensor:
        """What matching saves: the cost of the independent coupling minus the transport cost; b."""
        return torch.einsum("bn,bmn,bm->b", self.a, self.reduced, self.b) - self._feasible_cost

    @cached_property
    def _reduced_bound(self) -> Tensor:
        """`dual_bound` of the reduced cost; b."""
        reduced = (self.reduced - self.potentials[..., None]).masked_fill(self.b[..., None] == 0, torch.inf)
        least = torch.where(self.a > 0, reduced.amin(1), 0.0)
        return (self.b * self.potentials).sum(1) + (self.a * least).sum(1)

    @cached_property
    def dual_bound(self) -> Tensor:
        """Σ b g + Σ a min_j (C − g): the exact cost lies between it and `transport_cost`; b."""
        return self._reduced_bound + self.constant

    @cached_property
    def gap(self) -> Tensor:
        """Certificate: F_ε of the rounded plan minus D(g), so at most that far above its minimum; b, ≥ 0.

        For "emd", which has no blur: `transport_cost` minus `dual_bound`. Zero up to rounding if solved.
        """
        primal = torch.special.xlogy(self._feasible, self._feasible) - torch.special.xlogy(
            self._feasible, self.a[:, None] * self.b[..., None]
        )
        entropic = self._feasible_cost + self.epsilon * primal.sum((1, 2)) + (self.constant - self.value.detach())
        return torch.where(self.epsilon > 0, entropic, self._feasible_cost - self._reduced_bound)

    @cached_property
    def plan_entropy(self) -> Tensor:
        """Mean entropy of a code's plan over that of the unit masses; b in 0..1 (1 = uniform, or one unit)."""
        own = -torch.special.xlogy(self.b, self.b).sum(1)
        codes = -(torch.special.xlogy(self._conditional, self._conditional).sum(1) * self.a).sum(1)
        return torch.where(own > 0, codes / own.clamp(min=1e-30), (self.b.sum(1) > 0).to(own.dtype))


def solve(
    x: Tensor,
    y: Tensor,
    *,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    x_weight: Tensor | None = None,
    y_weight: Tensor | None = None,
    project: Tensor | None = None,
    cost: str = "sqeuclidean",
    epsilon: float = 0.02,
    epsilon_mode: str = "relative",
    solver: str = "newton",
    schedule: str | None = None,
    tolerance: float = 1e-5,
    max_passes: int = 100,
    warm_start: Tensor | None = None,
    unit_cost: Tensor | None = None,
) -> Transport:
    """Optimal transport of codes onto text units, one problem per image; b n d, b m d -> Transport over b.

    The gradient of `value` (for x, y, project and the weights) comes from the envelope theorem: ∂F_ε/∂C = P. Half
    precision is computed in float32, with autocast off. A problem without units or codes has value, cost and gradient
    exactly 0, and a batch of no problems has an empty result. A NaN in a point that is not masked makes its own problem
    NaN and no other.

    Args:
        x: Codes, b n d; b n c with `project`.
        y: Text units, b m d.
        x_mask: True where a code exists, b n bool. Default: everywhere.
        y_mask: True where a unit exists, b m bool. Default: everywhere.
        x_weight: Masses of the codes, b n; they are normalised. Default: uniform.
        y_weight: Masses of the units, b m; they are normalised. Default: uniform.
        project: W, c d, from the codes' width to the text's. x·W is never formed (x·W·y = x·(W y)). Default: none.
        cost: "sqeuclidean", the squared distance of x and y, or "dot", minus their product.
        epsilon: Entropic blur. Half the blur quarters the error of the cost and takes a tenth to a quarter more time;
            give 0.01 if an error of 1e-3 of the gain matters. Below about 3e-4 of the cost's scale, "newton" and
            "sinkhorn" take hundreds of passes and may stop at `max_passes` first: a warning says so.
        epsilon_mode: "relative": epsilon is a share of the RMS of each problem's row-centred cost (a scale without
            gradient); or "absolute".
        solver: "newton" (semi-dual, all codes), "sinkhorn" (the same dual by Sinkhorn steps) or "emd" (POT's exact
            solver on the CPU, the reference).
        schedule: "adaptive" stops each problem at `tolerance`, or after `max_passes`. "fixed" makes a fixed number of
            passes and reads nothing back from the device. Default: adaptive on a CPU, fixed elsewhere. `converged`
            is that of the returned plan for both. Where rounding keeps a float32 problem from `tolerance`, "adaptive"
            finishes it in float64.
        tolerance: L1 marginal error at which a problem has converged.
        max_passes: Passes over the codes at the target blur, at most.
        warm_start: Potentials to start from, b m. Default: none.
        unit_cost: Added to every code's cost of a unit, b m, without gradient. Default: none.

    Raises:
        ValueError: Shapes do not fit, a name is unknown, or, on a CPU, a weight is negative (elsewhere a negative
            weight makes its problem NaN).

    >>> x = torch.eye(3)[None]
    >>> bool(solve(x, x.flip(1), epsilon=0.01).transport_cost < 1e-5)
    True
    """
    _check_shapes(x, y, project, warm_start, unit_cost)
    _check_settings(solver, cost, epsilon, epsilon_mode, schedule, tolerance, max_passes)
    adaptive = _is_adaptive(schedule, x.device)
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.float32
        for tensor in (x, y) if project is None else (x, y, project):
            dtype = torch.promote_types(dtype, tensor.dtype)
        has_points = _has_points(x_mask, y_mask, x, y)
        a = _masses("x_weight", x_weight, _full_mask(x_mask, x, has_points), dtype)
        units = _full_mask(y_mask, y, has_points)
        b = _masses("y_weight", y_weight, units, dtype)
        x, y = x.to(dtype), y.to(dtype)
        units = units & (b != 0)  # a unit without mass counts as masked
        uniform = x_mask is None and x_weight is None and y_mask is None
        relative = epsilon_mode == "relative"
        settings = SolverSettings(cost, epsilon, relative, solver, adaptive, tolerance, max_passes, uniform)
        project = None if project is None else project.to(dtype)
        unit_cost = None if unit_cost is None else unit_cost.to(dtype)
        value, *rest = EntropicValue.apply(x, y, project, a, b, units, has_points, warm_start, unit_cost, settings)
        potentials, blur, error, reduced, constant, q = rest
        converged = error <= (1e-6 if solver == "emd" else tolerance)
        return Transport(value, potentials, blur, error, converged, a.detach(), b.detach(), reduced, constant, q)


def _is_adaptive(schedule: str | None, device: torch.device) -> bool:
    return device.type == "cpu" if schedule is None else schedule == "adaptive"


def _check_shapes(
    x: Tensor, y: Tensor, project: Tensor | None, warm_start: Tensor | None, unit_cost: Tensor | None
) -> None:
    if x.ndim != 3 or y.ndim != 3 or len(x) != len(y) or 0 in (x.shape[1], y.shape[1]):
        raise ValueError(
            f"x is {tuple(x.shape)} and y {tuple(y.shape)}: give b n d and b m d with the same b, n and m at least 1 "
            "(mask all units of an image without text)"
        )
    through = (x.shape[2], y.shape[2]) if project is None else tuple(project.shape)
    if through != (x.shape[2], y.shape[2]) or (project is None and x.shape[2] != y.shape[2]):
        raise ValueError(
            f"x is {tuple(x.shape)} and y {tuple(y.shape)}, project "
            f"{None if project is None else tuple(project.shape)}: without project= both need the same width; "
            "with it, give c d, from the codes' width to the text's (a Linear's weight transposed)"
        )
    for tensor, name in ((x, "x"), (y, "y"), (project, "project")):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}: give floating point, {name}.float()")
    if warm_start is not None and warm_start.shape != y.shape[:2]:
        raise ValueError(f"warm_start is {tuple(warm_start.shape)}: give potentials, {tuple(y.shape[:2])}")
    if unit_cost is not None and unit_cost.shape != y.shape[:2]:
        raise ValueError(f"unit_cost is {tuple(unit_cost.shape)}: give {tuple(y.shape[:2])}")


def _check_settings(
    solver: str,
    cost: str,
    epsilon: float,
    epsilon_mode: str,
    schedule: str | None,
    tolerance: float,
    max_passes: int,
) -> None:
    for name, value, known in (
        ("cost", cost, COSTS),
        ("epsilon_mode", epsilon_mode, ("relative", "absolute")),
        ("solver", solver, SOLVERS),
        ("schedule", schedule, (None, "adaptive", "fixed")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: give one of {', '.join(map(repr, known))}")
    if not (epsilon > 0 and isfinite(epsilon)):
        raise ValueError(f'epsilon must be above 0 and finite, got {epsilon}; for exact transport give solver="emd"')
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    if max_passes < 1:
        raise ValueError(f"max_passes must be at least 1, got {max_passes}")


def _has_points(x_mask: Tensor | None, y_mask: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """Which problems have codes and units; -> b bool."""
    has_points = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for name, mask, points in (("x_mask", x_mask, x), ("y_mask", y_mask, y)):
        if mask is not None:
            if mask.shape != points.shape[:2] or mask.dtype != torch.bool:
                raise ValueError(f"{name} is {tuple(mask.shape)} {mask.dtype}: give {tuple(points.shape[:2])} bool")
            has_points = has_points & mask.any(1)
    return has_points


def _full_mask(mask: Tensor | None, points: Tensor, has_points: Tensor) -> Tensor:
    """The mask without the points of problems that lack codes or units; b n bool."""
    return has_points[:, None].expand(points.shape[:2]) if mask is None else mask & has_points[:, None]


def _masses(name: str, weight: Tensor | None, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Masses that sum to 1 over the unmasked points; all 0 where every point is masked."""
    if weight is None:
        weight = mask.to(dtype)
    elif weight.shape != mask.shape:
        raise ValueError(f"{name} is {tuple(weight.shape)}: give {tuple(mask.shape)}")
    else:
        weight = weight.to(dtype).masked_fill(~mask, 0.0)
        total = weight.detach().sum(1)
        bad = (weight.detach() < 0).any(1) | ((total <= 0) & mask.any(1))
        if weight.device.type == "cpu" and bad.any():
            raise ValueError(
                f"{name} holds a negative mass, or nothing but 0: give masses of 0 or more, at least one above 0"
            )
        weight = weight.masked_fill(bad[:, None], torch.nan)  # never read back from a GPU
    total = weight.sum(1, keepdim=True)
    return weight / total.masked_fill(total == 0, 1.0)
