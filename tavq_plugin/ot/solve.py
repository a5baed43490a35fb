"""`solve`: optimal transport between many codes and a few text units, batched, masked and differentiable.

Usable without the rest of the plug-in. x and y are batches of point clouds; each image is a problem of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tavq_plugin.ot.value import How, Value

COSTS = ("sqeuclidean", "dot")
SOLVERS = ("newton", "sinkhorn", "emd")


@dataclass(frozen=True)
class TransportSettings:
    """How codes and text are matched; the arguments of `solve`."""

    solver: str = "newton"  # "newton" | "sinkhorn" | "emd"
    cost: str = "sqeuclidean"  # "sqeuclidean" | "dot"
    epsilon: float = 0.02  # entropic blur, as a share of each problem's own cost scale (or absolute)
    epsilon_mode: str = "relative"  # "relative" | "absolute"
    schedule: str | None = None  # "adaptive" | "fixed"; None: adaptive on a CPU, fixed elsewhere
    # L1 marginal error at which a problem stops: its gradient is as exact, far below batch noise
    tolerance: float = 1e-2
    max_passes: int = 100  # over the codes at the target blur, at most

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}")
        if self.max_passes < 1:
            raise ValueError(f"max_passes must be at least 1, got {self.max_passes}")


@dataclass(frozen=True)
class Transport:
    """The solution of a batch of problems; everything but `value` is without gradient and computed when read.

    C is the cost; `reduced` leaves out what is the same for all units of a code, |x|², and cannot change a plan.
    """

    value: Tensor  # b, differentiable: F_ε = min ⟨P, C⟩ + ε KL(P | a bᵀ) (newton, sinkhorn), or the exact cost (emd)
    potentials: Tensor  # b m, of the units, mean 0 under their masses
    epsilon: Tensor  # b, absolute
    marginal_error: Tensor  # b, L1 distance of the plan's unit masses from those asked for
    converged: Tensor  # b bool, within the tolerance asked for
    a: Tensor  # b n, masses of the codes; all 0 for a problem without units
    b: Tensor  # b m
    reduced: Tensor  # b m n
    constant: Tensor  # b, Σ a (C − reduced)
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
        """⟨P, reduced⟩ of the rounded plan; b. Its differences keep the digits that Σ a |x|² would cost them."""
        return torch.linalg.vecdot(self._feasible.flatten(1), self.reduced.flatten(1))

    @cached_property
    def transport_cost(self) -> Tensor:
        """⟨P, C⟩ of the plan, rounded to both marginals; b. Never below the exact cost."""
        return self._feasible_cost + self.constant

    @cached_property
    def gain(self) -> Tensor:
        """Cost of the independent coupling less the transport cost: what matching brings; b."""
        return torch.einsum("bn,bmn,bm->b", self.a, self.reduced, self.b) - self._feasible_cost

    @cached_property
    def _bound(self) -> Tensor:
        reduced = (self.reduced - self.potentials[..., None]).masked_fill(self.b[..., None] == 0, torch.inf)
        least = torch.where(self.a > 0, reduced.amin(1), 0.0)
        return (self.b * self.potentials).sum(1) + (self.a * least).sum(1)

    @cached_property
    def dual_bound(self) -> Tensor:
        """Σ b g + Σ a min_j (C − g): the exact cost lies between it and `transport_cost`; b."""
        return self._bound + self.constant

    @cached_property
    def gap(self) -> Tensor:
        """Certificate: how far F_ε of the rounded plan lies above its dual D(g), so above its minimum; b, ≥ 0.

        For "emd", which has no blur, `transport_cost` less `dual_bound`. Zero up to rounding where solved.
        """
        primal = torch.special.xlogy(self._feasible, self._feasible) - torch.special.xlogy(
            self._feasible, self.a[:, None] * self.b[..., None]
        )
        entropic = self._feasible_cost + self.epsilon * primal.sum((1, 2)) + (self.constant - self.value.detach())
        return torch.where(self.epsilon > 0, entropic, self._feasible_cost - self._bound)

    @cached_property
    def plan_entropy(self) -> Tensor:
        """Mean entropy of a code's plan over its maximum, the units' own; b in 0..1 (1 = uniform, or one unit)."""
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
) -> Transport:
    """Optimal transport of codes onto text units, a problem an image; b n d, b m d -> Transport over b.

    project: c d, where x is b n c: the codes are x·W, which is never formed (x·W·y = x·(W y)).
    cost: |x − y|² or −x·y. epsilon: entropic blur, relative to the RMS of each problem's row-centred cost (a scale
    without gradient) or absolute; half of it quarters the error of the cost, for a tenth to a quarter more time
    (0.01 where 1e-3 of the gain matters). solver: "newton" (semi-dual, all codes), "sinkhorn" (the same dual by
    Sinkhorn steps), "emd" (POT's exact solver on the CPU; the oracle). schedule: "adaptive" stops each problem at
    `tolerance` (L1 marginal error) or after `max_passes` at the target blur; "fixed" makes a fixed number of passes
    and reads nothing back from the device; default: adaptive on a CPU, fixed elsewhere. `converged` tells either way.
    Masks are True where a point is; masses are normalised, uniform by default. warm_start: potentials, b m.

    Gradient of `value` (to x, y, project and the weights) by the envelope theorem: ∂F_ε/∂C = P. Half precision is
    computed in float32, autocast off. A problem without units or codes has value, cost and gradient exactly 0; a NaN
    in a point that is not masked makes its own problem NaN and no other.

    Raises ValueError for shapes that do not fit and unknown names, and on a CPU for negative weights (elsewhere they
    make their problem NaN).

    >>> x = torch.eye(3)[None]
    >>> bool(solve(x, x.flip(1), epsilon=0.01).transport_cost < 1e-5)
    True
    """
    _check(x, y, project, warm_start)
    _check_settings(cost, epsilon, epsilon_mode, solver, schedule, tolerance, max_passes)
    adaptive = x.device.type == "cpu" if schedule is None else schedule == "adaptive"
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.float32
        for tensor in (x, y) if project is None else (x, y, project):
            dtype = torch.promote_types(dtype, tensor.dtype)
        present = _present(x_mask, y_mask, x, y)
        a = _masses("x_weight", x_weight, _mask("x_mask", x_mask, x, present), dtype)
        units = _mask("y_mask", y_mask, y, present)
        b = _masses("y_weight", y_weight, units, dtype)
        x, y = x.to(dtype), y.to(dtype)
        units = units & (b != 0)  # a unit without mass is no unit
        uniform = x_mask is None and x_weight is None and y_mask is None
        how = How(cost, epsilon, epsilon_mode == "relative", solver, adaptive, tolerance, max_passes, uniform)
        project = None if project is None else project.to(dtype)
        value, *rest = Value.apply(x, y, project, a, b, units, present, warm_start, how)
        potentials, blur, error, reduced, constant, q = rest
        converged = error <= (1e-6 if solver == "emd" else tolerance)
        return Transport(value, potentials, blur, error, converged, a.detach(), b.detach(), reduced, constant, q)


def _check(x: Tensor, y: Tensor, project: Tensor | None, warm_start: Tensor | None) -> None:
    if x.ndim != 3 or y.ndim != 3 or len(x) != len(y) or 0 in (x.shape[1], y.shape[1]):
        raise ValueError(
            f"x is {tuple(x.shape)} and y {tuple(y.shape)}: give b n d and b m d with one b, n and m at least 1 "
            "(an image without text is a masked one)"
        )
    through = (x.shape[2], y.shape[2]) if project is None else tuple(project.shape)
    if through != (x.shape[2], y.shape[2]) or (project is None and x.shape[2] != y.shape[2]):
        raise ValueError(
            f"x is {tuple(x.shape)} and y {tuple(y.shape)}, project "
            f"{None if project is None else tuple(project.shape)}: without project= both need one width; "
            "with it, give c d, from the codes' width to the text's (a Linear's weight transposed)"
        )
    for tensor, name in ((x, "x"), (y, "y"), (project, "project")):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}: give floating point, {name}.float()")
    if warm_start is not None and warm_start.shape != y.shape[:2]:
        raise ValueError(f"warm_start is {tuple(warm_start.shape)}: give potentials, {tuple(y.shape[:2])}")


def _check_settings(
    cost: str, epsilon: float, mode: str, solver: str, schedule: str | None, tolerance: float, max_passes: int
) -> None:
    for name, value, known in (
        ("cost", cost, COSTS),
        ("epsilon_mode", mode, ("relative", "absolute")),
        ("solver", solver, SOLVERS),
        ("schedule", schedule, (None, "adaptive", "fixed")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: give one of {', '.join(map(repr, known))}")
    if not epsilon > 0:
        raise ValueError(f'epsilon must be above 0, got {epsilon}; for exact transport give solver="emd"')
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    if max_passes < 1:
        raise ValueError(f"max_passes must be at least 1, got {max_passes}")


def _present(x_mask: Tensor | None, y_mask: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """Which problems have codes and units; -> b bool."""
    present = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for name, mask, points in (("x_mask", x_mask, x), ("y_mask", y_mask, y)):
        if mask is not None:
            if mask.shape != points.shape[:2] or mask.dtype != torch.bool:
                raise ValueError(f"{name} is {tuple(mask.shape)} {mask.dtype}: give {tuple(points.shape[:2])} bool")
            present = present & mask.any(1)
    return present


def _mask(name: str, mask: Tensor | None, points: Tensor, present: Tensor) -> Tensor:
    return present[:, None].expand(points.shape[:2]) if mask is None else mask & present[:, None]


def _masses(name: str, weight: Tensor | None, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Masses that sum to 1 over the unmasked; all 0 where none is."""
    if weight is None:
        weight = mask.to(dtype)
    elif weight.shape != mask.shape:
        raise ValueError(f"{name} is {tuple(weight.shape)}: give {tuple(mask.shape)}")
    else:
        weight = weight.to(dtype).masked_fill(~mask, 0.0)
        total = weight.detach().sum(1)
        bad = (weight.detach() < 0).any(1) | ((total <= 0) & mask.any(1))
        if weight.device.type == "cpu" and bad.any():
            raise ValueError(f"{name} holds a negative mass, or nothing but 0: masses are 0 or more, one above 0")
        weight = torch.where(bad[:, None], torch.nan, weight)  # never read back from a GPU
    total = weight.sum(1, keepdim=True)
    return weight / torch.where(total == 0, 1.0, total)
