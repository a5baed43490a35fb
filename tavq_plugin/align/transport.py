"""`solve`: optimal transport between many codes and a few text units, batched, masked and differentiable.

Usable without the rest of the plug-in. x and y are batches of point clouds; each image is a problem of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tavq_plugin.align.semidual import Problem, conditional, maximise

COSTS = ("sqeuclidean", "dot")
SOLVERS = ("newton", "sinkhorn", "emd")


@dataclass(frozen=True)
class Transport:
    """The solution of a batch of problems; everything but `value` is without gradient and computed when read."""

    value: Tensor  # b, differentiable: F_ε (newton, sinkhorn) or the exact cost (emd)
    potentials: Tensor  # b m, of the units, mean 0 under their masses
    epsilon: Tensor  # b, absolute
    marginal_error: Tensor  # b, L1 distance of the plan's unit masses from those asked for
    converged: Tensor  # b bool
    cost: Tensor  # b n m
    a: Tensor  # b n, masses of the codes; all 0 for a problem without units
    b: Tensor  # b m
    _conditional: Tensor  # b n m, each code's plan over the units

    def plan(self) -> Tensor:
        """The transport plan, rows summing to the codes' masses; b n m."""
        return self._conditional * self.a[..., None]

    @cached_property
    def _feasible(self) -> Tensor:
        """The plan rounded to both marginals (Altschuler et al. 2017, alg. 2); b n m."""
        plan = self.plan()
        masses = plan.sum(1)
        plan = plan * (self.b / masses.clamp(min=1e-30)).clamp(max=1.0)[:, None]
        rows = (self.a - plan.sum(2)).clamp(min=0)
        columns = (self.b - plan.sum(1)).clamp(min=0)
        return plan + rows[..., None] * columns[:, None] / columns.sum(1).clamp(min=1e-30)[:, None, None]

    @cached_property
    def transport_cost(self) -> Tensor:
        """⟨P, C⟩ of the plan, rounded to both marginals; b. Never below the exact cost."""
        return (self._feasible * self.cost).sum((1, 2))

    @cached_property
    def gain(self) -> Tensor:
        """Cost of the independent coupling less the transport cost: what matching brings; b."""
        return torch.einsum("bn,bnm,bm->b", self.a, self.cost, self.b) - self.transport_cost

    @cached_property
    def dual_bound(self) -> Tensor:
        """Σ b g + Σ a min_j (C − g), never above the exact cost; b."""
        reduced = (self.cost - self.potentials[:, None]).masked_fill(self.b[:, None] == 0, torch.inf)
        least = torch.where(self.a > 0, reduced.amin(2), 0.0)
        return (self.b * self.potentials).sum(1) + (self.a * least).sum(1)

    @cached_property
    def gap(self) -> Tensor:
        """Certificate: the exact cost lies in [transport_cost − gap, transport_cost]; b, ≥ 0 up to rounding."""
        return self.transport_cost - self.dual_bound

    @cached_property
    def plan_entropy(self) -> Tensor:
        """Mean entropy of a code's plan over its maximum, the units' own; b in 0..1 (1 = uniform, or one unit)."""
        own = -torch.special.xlogy(self.b, self.b).sum(1)
        codes = -(torch.special.xlogy(self._conditional, self._conditional).sum(2) * self.a).sum(1)
        return torch.where(own > 0, codes / own.clamp(min=1e-30), (self.b.sum(1) > 0).to(own.dtype))


def solve(
    x: Tensor,
    y: Tensor,
    *,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    x_weight: Tensor | None = None,
    y_weight: Tensor | None = None,
    cost: str = "sqeuclidean",
    epsilon: float = 0.02,
    epsilon_mode: str = "relative",
    solver: str = "newton",
    schedule: str = "adaptive",
    tolerance: float = 1e-3,
    max_passes: int = 60,
    warm_start: Tensor | None = None,
) -> Transport:
    """Optimal transport of codes onto text units, a problem an image; b n d, b m d -> Transport over b.

    cost: |x − y|² or −x·y. epsilon: entropic blur, relative to the RMS of each problem's row-centred cost (a scale
    without gradient) or absolute. solver: "newton" (semi-dual, all codes), "sinkhorn" (the same dual by Sinkhorn
    steps), "emd" (POT's exact solver on the CPU; the oracle). schedule: "adaptive" stops at `tolerance` (L1 marginal
    error), "fixed" makes all passes. Masks are True where a point is; masses are normalised, uniform by default.

    Gradient of `value` (to x, y and the weights) by the envelope theorem: ∂F_ε/∂C = P. Half precision is computed in
    float32, autocast off. A problem without units or codes has value, cost and gradient exactly 0; a NaN in a
    point that is not masked makes its own problem NaN and no other.

    Raises ValueError for shapes that do not fit, negative weights and unknown names.

    >>> x = torch.eye(3)[None]
    >>> bool(solve(x, x.flip(1), epsilon=0.01).transport_cost < 1e-5)
    True
    """
    _check(x, y, cost, epsilon, epsilon_mode, solver, schedule)
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x_mask = _mask("x_mask", x_mask, x)
        y_mask = _mask("y_mask", y_mask, y)
        present = x_mask.any(1) & y_mask.any(1)
        x_mask, y_mask = x_mask & present[:, None], y_mask & present[:, None]
        a = _masses("x_weight", x_weight, x_mask, dtype)
        b = _masses("y_weight", y_weight, y_mask, dtype)
        y_mask = y_mask & (b > 0)  # a unit without mass is no unit
        costs = _costs(x.to(dtype), y.to(dtype), x_mask, y_mask, cost)
        if solver == "emd":
            return _emd(costs.mT, a, b)

        with torch.no_grad():
            centred, middle, scale = _scaled(costs, a, y_mask)
            blur = torch.full_like(scale, epsilon) / (1.0 if epsilon_mode == "relative" else scale)
            problem = Problem.of(centred, a, b, y_mask | ~present[:, None], blur)
            start = None if warm_start is None else warm_start.to(dtype) / scale[:, None]
            potentials, error = maximise(
                problem, newton=solver == "newton", adaptive=schedule == "adaptive", tolerance=tolerance,
                max_passes=max_passes, start=start,
            )  # fmt: skip
            q, lse = conditional(problem, potentials, blur)
            potentials, blur = potentials * scale[:, None], blur * scale
            soft = middle - blur[:, None] * lse
        value = _Value.apply(costs, a, b, q, soft, potentials, blur)
        with torch.no_grad():
            potentials = torch.where(y_mask, potentials - (b * potentials).sum(1, keepdim=True), 0.0)
            error = torch.where(present, error, 0.0)
        return Transport(
            value, potentials, blur, error, error <= tolerance, costs.detach().mT, a.detach(), b.detach(), q.mT
        )


class _Value(torch.autograd.Function):
    """D(g) at its maximum, where ∂D/∂g = 0: the gradient in the costs is the plan; b m n, b n, b m -> b."""

    @staticmethod
    def forward(ctx, costs, a, b, q, soft, potentials, epsilon):
        """q: b m n, of each code over the units; soft: b n, its least reduced cost −ε log Σ b exp((g − C) / ε)."""
        ctx.save_for_backward(a, b, q, soft, potentials, epsilon)
        return (b * potentials).sum(1) + (a * soft).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """The envelope theorem: P, soft, and g − ε Pᵀ1 / b."""
        a, b, q, soft, potentials, epsilon = ctx.saved_tensors
        to_b = None
        if ctx.needs_input_grad[2]:
            to_b = potentials - epsilon[:, None] * (q @ a[..., None])[..., 0] / b
            to_b = grad[:, None] * to_b.masked_fill(b == 0, 0.0)
        return (grad[:, None] * a)[:, None] * q, grad[:, None] * soft, to_b, None, None, None, None


class _SquaredDistance(torch.autograd.Function):
    """|x − y|² with the backward of a matrix product; b n d, b m d -> b m n."""

    @staticmethod
    def forward(ctx, x, y):
        """Both with zeros where padded."""
        ctx.save_for_backward(x, y)
        offset = y.square().sum(2)[..., None] + torch.linalg.vector_norm(x, dim=2).square()[:, None]
        return torch.baddbmm(offset, y, x.mT, alpha=-2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """2 Σ (x − y) ∂C."""
        x, y = ctx.saved_tensors
        to_x = to_y = None
        if ctx.needs_input_grad[0]:
            to_x = torch.baddbmm(x * grad.sum(1)[..., None], grad.mT, y, beta=2, alpha=-2)
        if ctx.needs_input_grad[1]:
            to_y = torch.baddbmm(y * grad.sum(2)[..., None], grad, x, beta=2, alpha=-2)
        return to_x, to_y


def _check(x: Tensor, y: Tensor, cost: str, epsilon: float, mode: str, solver: str, schedule: str) -> None:
    if x.ndim != 3 or y.ndim != 3 or len(x) != len(y) or x.shape[2] != y.shape[2] or 0 in (x.shape[1], y.shape[1]):
        raise ValueError(
            f"x is {tuple(x.shape)} and y {tuple(y.shape)}: give b n d and b m d with one b and d, n and m at least 1 "
            "(an image without text is a masked one)"
        )
    for name, value, known in (
        ("cost", cost, COSTS),
        ("epsilon_mode", mode, ("relative", "absolute")),
        ("solver", solver, SOLVERS),
        ("schedule", schedule, ("adaptive", "fixed")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: give one of {', '.join(map(repr, known))}")
    if not epsilon > 0:
        raise ValueError(f'epsilon must be above 0, got {epsilon}; for exact transport give solver="emd"')


def _mask(name: str, mask: Tensor | None, points: Tensor) -> Tensor:
    if mask is None:
        return points.new_ones(points.shape[:2], dtype=torch.bool)
    if mask.shape != points.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"{name} is {tuple(mask.shape)} {mask.dtype}: give {tuple(points.shape[:2])} bool")
    return mask


def _masses(name: str, weight: Tensor | None, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Masses that sum to 1 over the unmasked; all 0 where none is."""
    if weight is None:
        weight = mask.to(dtype)
    elif weight.shape != mask.shape:
        raise ValueError(f"{name} is {tuple(weight.shape)}: give {tuple(mask.shape)}")
    else:
        weight = weight.to(dtype).masked_fill(~mask, 0.0)
        total = weight.detach().sum(1)
        if (weight < 0).any() or ((total <= 0) & mask.any(1)).any():
            raise ValueError(f"{name} holds a negative mass, or nothing but 0: masses are 0 or more, one above 0")
    total = weight.sum(1, keepdim=True)
    return weight / torch.where(total > 0, total, 1.0)


def _costs(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, cost: str) -> Tensor:
    """b n d, b m d -> b m n; pads are zeroed before any arithmetic, so what lies in them cannot leak."""
    y = y.masked_fill(~y_mask[..., None], 0.0)
    if cost == "dot":
        return -(y @ x.masked_fill(~x_mask[..., None], 0.0).mT)
    # centred on the units' mean: distances keep their digits far from the origin
    centre = y.detach().sum(1, keepdim=True) / y_mask.sum(1).clamp(min=1)[:, None, None]
    x, y = (x - centre).masked_fill(~x_mask[..., None], 0.0), (y - centre).masked_fill(~y_mask[..., None], 0.0)
    return _SquaredDistance.apply(x, y)


def _scaled(costs: Tensor, a: Tensor, y_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Costs centred on each code's mean, in units of their RMS; the means; the RMS (1 where a cost never varies).

    b m n -> b m n, b n, b.
    """
    count = y_mask.sum(1).clamp(min=1)[:, None]
    pads = ~y_mask[..., None]
    middle = costs.masked_fill(pads, 0.0).sum(1) / count
    centred = (costs - middle[:, None]).masked_fill_(pads, 0.0)
    largest = centred.abs().amax((1, 2)).clamp(min=torch.finfo(costs.dtype).tiny)
    unit = centred / largest[:, None, None]  # so that squares neither vanish nor overflow
    rms = largest * ((unit.square_().sum(1) * a).sum(1) / count[:, 0]).sqrt()
    scale = torch.where(rms > 0, rms, 1.0)
    return centred.div_(scale[:, None, None]), middle, scale


def _emd(costs: Tensor, a: Tensor, b: Tensor) -> Transport:
    """Exact transport by POT's network simplex, a problem at a time; the plan is held fixed for the gradient."""
    import ot

    plans, potentials = torch.zeros_like(costs), torch.zeros_like(b)
    for i, (c, mass, units) in enumerate(zip(costs.detach(), a.detach(), b.detach(), strict=True)):
        rows, columns = mass.nonzero()[:, 0], units.nonzero()[:, 0]
        if not len(columns):
            continue
        if not c.isfinite().all():
            plans[i] = torch.nan
            continue
        part = c[rows][:, columns].double().cpu()
        left, right = mass[rows].double().cpu(), units[columns].double().cpu()
        plan, log = ot.emd((left / left.sum()).numpy(), (right / right.sum()).numpy(), part.numpy(), log=True)
        if log["warning"]:
            raise RuntimeError(f"POT's emd did not finish on problem {i}: {log['warning']}")
        plans[i, rows[:, None], columns] = torch.from_numpy(plan).to(plans)
        potentials[i, columns] = torch.from_numpy(log["v"]).to(b)
    value = (plans * costs).sum((1, 2))
    error = (plans.sum(1) - b.detach()).abs().sum(1)
    q = plans / a.detach().clamp(min=1e-30)[..., None]
    potentials = torch.where(b > 0, potentials - (b * potentials).sum(1, keepdim=True), 0.0).detach()
    return Transport(
        value, potentials, torch.zeros_like(value), error, error < 1e-6, costs.detach(), a.detach(), b.detach(), q
    )
