"""F_ε of a batch of problems and its gradient: one node of the autograd graph for every solver."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tavq_plugin.ot.emd import emd
from tavq_plugin.ot.newton import maximise
from tavq_plugin.ot.semidual import PLAN_CUTOFF, Problem, conditional_plan, marginal_error

SMALL_BLUR = 3e-4  # share of the cost's scale below which the passes are many


class SolverSettings(NamedTuple):
    """The arguments of `solve` that are not tensors."""

    cost: str
    epsilon: float
    relative: bool  # epsilon is a share of each problem's own cost scale
    solver: str
    adaptive: bool
    tolerance: float
    max_passes: int
    uniform: bool  # no mask and no weights: every code has mass 1 / n

    @property
    def newton(self) -> bool:
        """Whether passes take Newton steps; if not, Sinkhorn steps alone."""
        return self.solver == "newton"


class EntropicValue(torch.autograd.Function):
    """F_ε = D(g) at the maximum of the dual, where ∂D/∂g = 0 and so ∂F_ε/∂C = P.

    x b n c, y b m d, project c d or None (W = 1), a b n, b b m, unit_cost b m or None; points without mass take no
    part. Saves x, y and each code's plan; the backward pass is Pᵀ y and P x, and their products with W. The part of a
    code's cost that all units share, Σ a |x W|², cannot change the plan: it is computed from the codes' moments, and
    the projected codes are never formed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        project: Tensor | None,
        a: Tensor,
        b: Tensor,
        y_mask: Tensor,
        has_points: Tensor,
        warm_start: Tensor | None,
        unit_cost: Tensor | None,
        settings: SolverSettings,
    ) -> tuple[Tensor, ...]:
        """-> value b, potentials b m, blur b, marginal error b, reduced cost b m n, constant b, plan b m n."""
        squared = settings.cost == "sqeuclidean"
        pads, count = ~y_mask[..., None], y_mask.sum(1).clamp(min=1)[:, None]
        # padded entries are set to 0 before any arithmetic, so that their content cannot leak
        y, massless = y.masked_fill(pads, 0.0), None if settings.uniform else (a == 0)[..., None]
        mean = y.sum(1, keepdim=True) / count[..., None]
        centred = (y - mean).masked_fill_(pads, 0.0)  # reduced costs then have mean 0 over the units of each code
        if squared and project is None:  # distances keep their digits far from the origin
            x, y, mean = x - mean, centred, torch.zeros_like(mean)
            x = x if massless is None else x.masked_fill_(massless, 0.0)
        elif massless is not None and (squared or project is not None):
            x, massless = x.masked_fill(massless, 0.0), None
        reduced = _projected(centred, project) @ x.mT  # b m n
        if not squared and massless is not None:  # x is not copied: products of a padded code belong to it alone
            reduced = reduced.masked_fill_(massless.mT, 0.0)
        spread = centred.square().sum(2)
        mean_spread = spread.sum(1, keepdim=True) / count
        if squared:
            offset = (spread - mean_spread + 2 * (centred * mean).sum(2)).masked_fill(~y_mask, 0.0)
            reduced = reduced.mul_(-2).add_(offset[..., None])
        else:
            reduced = reduced.neg_()
        mean_cost = None
        if unit_cost is not None:
            unit_cost = unit_cost.masked_fill(~y_mask, 0.0)
            mean_cost = unit_cost.sum(1, keepdim=True) / count
            reduced.add_((unit_cost - mean_cost).masked_fill(~y_mask, 0.0)[..., None])
        gram = moments = None
        if squared and project is not None:
            gram, moments = project @ project.mT, _second_moments(x, a, settings.uniform)
        constant = _shared_value(x, a, project, mean, mean_spread, gram, moments, squared)
        if mean_cost is not None:
            constant = constant + a.sum(1) * mean_cost[:, 0]

        cost, scale = _normalised_cost(reduced, a, count)
        if settings.solver == "emd":
            q, potentials, soft_min = emd(reduced, a, b)
            blur, error = torch.zeros_like(scale), ((q @ a[..., None])[..., 0] - b).abs().sum(1)
        else:
            blur = torch.full_like(scale, settings.epsilon) / (1.0 if settings.relative else scale)
            _warn_of_small_blur(blur, settings)
            problem = Problem.of(cost, a, b, y_mask | ~has_points[:, None], blur)
            potentials, error = maximise(
                problem,
                newton=settings.newton,
                adaptive=settings.adaptive,
                tolerance=settings.tolerance,
                max_passes=settings.max_passes,
                start=None if warm_start is None else warm_start.to(a.dtype) / scale[:, None],
            )
            q, lse, potentials, error = _certified(problem, potentials, error, settings)
            potentials, blur = potentials * scale[:, None], blur * scale
            soft_min = -blur[:, None] * lse
        value = (b * potentials).sum(1) + (a * soft_min).sum(1) + constant

        ctx.settings = settings
        ctx.save_for_backward(
            x, y, project, a, b, q, soft_min, potentials, blur, mean, mean_spread, gram, moments, mean_cost
        )
        centred_potentials = torch.where(b > 0, potentials - (b * potentials).sum(1, keepdim=True), 0.0)
        rest = (centred_potentials, blur, torch.where(has_points, error, 0.0), reduced, constant, q)
        ctx.mark_non_differentiable(*rest)
        return value, *rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """By the envelope theorem: the plan for the points, soft minima of the costs for a, g − ε Pᵀ1 / b for b."""
        x, y, project, a, b, q, soft_min, potentials, blur, mean, mean_spread, gram, moments, mean_cost = (
            ctx.saved_tensors
        )
        squared, uniform = ctx.settings.cost == "sqeuclidean", ctx.settings.uniform
        mass = grad[:, None] * a
        # the plan is weight · q; a uniform mass multiplies the smaller factors instead of q
        plan, weight = (q, mass[:, :1, None]) if uniform else (mass[:, None] * q, None)  # b m n
        to_x = to_y = to_project = to_a = to_b = None
        if ctx.needs_input_grad[0]:
            units = _scaled_by(_projected(y, project), weight)
            if squared:
                to_x = _norm_gradient(x, mass, gram, uniform).baddbmm_(plan.mT, units, alpha=-2)
            else:
                to_x = plan.mT @ units.neg()
        if any(ctx.needs_input_grad[1:4]) and not (squared or uniform) and project is None:
            x = x.masked_fill((a == 0)[..., None], 0.0)
        if any(ctx.needs_input_grad[1:3]):
            transported = _scaled_by(plan @ x, weight)  # b m c, Pᵀ x
        if ctx.needs_input_grad[1]:
            to_y = transported if project is None else transported @ project
            if squared:
                to_y = 2 * (y * _scaled_by(plan.sum(2, keepdim=True), weight) - to_y)
            else:
                to_y = to_y.neg()
        if ctx.needs_input_grad[2]:
            to_project = (-2.0 if squared else -1.0) * torch.einsum("bmc,bmd->cd", transported, y)
            if squared:
                to_project = to_project + 2 * torch.einsum("b,bij->ij", grad, moments) @ project
        if ctx.needs_input_grad[3]:
            shared = _shared_cost(x, project, mean, mean_spread, squared)
            to_a = grad[:, None] * (soft_min + (shared if mean_cost is None else shared + mean_cost))
        if ctx.needs_input_grad[4]:
            to_b = potentials - blur[:, None] * (q @ a[..., None])[..., 0] / b
            to_b = grad[:, None] * to_b.masked_fill(b == 0, 0.0)
        return to_x, to_y, to_project, to_a, to_b, None, None, None, None, None


def _warn_of_small_blur(blur: Tensor, settings: SolverSettings) -> None:
    """Say that the passes will be many; an absolute epsilon is read back only where passes are too; b."""
    smallest = settings.epsilon
    if not settings.relative:
        smallest = blur.min().item() if settings.adaptive and len(blur) else SMALL_BLUR
    if smallest < SMALL_BLUR:
        warnings.warn(
            f"epsilon={settings.epsilon:g} is {smallest:.1g} of a problem's cost scale: below {SMALL_BLUR:g}, "
            f"solver={settings.solver!r} takes hundreds of passes and may stop before `tolerance` (`converged` tells); "
            'give a larger epsilon, or solver="emd" for exact transport',
            stacklevel=5,
        )


def _certified(
    problem: Problem, potentials: Tensor, error: Tensor, settings: SolverSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The plan at the potentials, its log-sum-exp, the potentials, and the plan's own marginal error.

    -> b m n, b n, b m, b. A pass finds its error with a kernel from other potentials, which at a small blur differs
    from the plan by rounding. An adaptive schedule finishes in float64 what only that kept from the tolerance.
    """
    q, lse = conditional_plan(problem, potentials, problem.epsilon)
    found = _plan_error(q, problem)
    if not settings.adaptive or q.dtype == torch.float64 or q.device.type == "mps":  # MPS has no float64
        return q, lse, potentials, found
    rows = ((error <= settings.tolerance) & (found > settings.tolerance)).nonzero()[:, 0]
    if not len(rows):
        return q, lse, potentials, found
    a, b = (part[rows].double() for part in (problem.a, problem.b))
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)  # in float32 they sum to 1 up to rounding only
    exact = Problem.of(problem.cost[rows].double(), a, b, problem.unit_mask[rows] > 0, problem.epsilon[rows].double())
    finished, _ = maximise(
        exact,
        newton=settings.newton,
        tolerance=settings.tolerance / 2,  # leaves room for rounding the plan to float32
        max_passes=settings.max_passes,
        start=potentials[rows].double(),
    )
    parts = (*conditional_plan(exact, finished, exact.epsilon), finished)
    q, lse, potentials = (
        whole.index_copy(0, rows, part.to(whole.dtype)) for whole, part in zip((q, lse, potentials), parts, strict=True)
    )
    q = F.threshold(q, PLAN_CUTOFF[q.dtype], 0.0, inplace=True)  # that of float64 lets smaller entries through
    return q, lse, potentials, _plan_error(q, problem)


def _plan_error(q: Tensor, problem: Problem) -> Tensor:
    """L1 distance of a plan's unit masses from b; b m n -> b."""
    return marginal_error(problem, (q @ problem.a[..., None])[..., 0])


def _projected(y: Tensor, project: Tensor | None) -> Tensor:
    """Units in the codes' space, W y; b m d -> b m c."""
    return y if project is None else y @ project.mT


def _scaled_by(part: Tensor, weight: Tensor | None) -> Tensor:
    """The product with a weight; unchanged if there is none."""
    return part if weight is None else part * weight


def _second_moments(x: Tensor, a: Tensor, uniform: bool) -> Tensor:
    """Σ a x xᵀ; b n c -> b c c. The two blocks off the diagonal are transposes; one is computed."""
    half, scaled = x.shape[2] // 2, x if uniform else x * a[..., None]
    upper, lower = scaled[..., :half].mT @ x, scaled[..., half:].mT @ x[..., half:]
    moments = torch.cat([upper, torch.cat([upper[..., half:].mT, lower], 2)], 1)
    return moments / x.shape[1] if uniform else moments


def _shared_value(
    x: Tensor,
    a: Tensor,
    project: Tensor | None,
    mean: Tensor,
    mean_spread: Tensor,
    gram: Tensor | None,
    moments: Tensor | None,
    squared: bool,
) -> Tensor:
    """Σ a r, where r is the part of a code's costs that all units share (`_shared_cost`), from moments; -> b."""
    if project is None and squared:  # x and y are centred
        own = torch.linalg.vecdot(a, torch.linalg.vector_norm(x, dim=2).square())
        return own + a.sum(1) * mean_spread[:, 0]
    if not squared and project is None:  # padded entries of x are not yet 0
        return -torch.linalg.vecdot(a, (x @ mean.mT)[..., 0].masked_fill(a == 0, 0.0))
    first = torch.linalg.vecdot((a[:, None] @ x)[:, 0], _projected(mean, project)[:, 0])  # Σ a x W · mean
    if gram is None or moments is None:  # the cost is not squared
        return -first
    second = (moments * gram).sum((1, 2))  # Σ a |x W|²
    return second - 2 * first + a.sum(1) * (mean.square().sum((1, 2)) + mean_spread[:, 0])


def _shared_cost(x: Tensor, project: Tensor | None, mean: Tensor, mean_spread: Tensor, squared: bool) -> Tensor:
    """The part of a code's costs that all units share: |x W − mean|² + mean_spread, or −x W · mean; b n c -> b n."""
    points = x if project is None else x @ project
    if not squared:
        return -(points * mean).sum(2)
    return (points - mean).square().sum(2) + mean_spread


def _norm_gradient(x: Tensor, mass: Tensor, gram: Tensor | None, uniform: bool) -> Tensor:
    """Gradient of Σ mass |x W|² in x: 2 mass x W Wᵀ; b n c -> b n c."""
    if gram is None:
        return x * (2 * mass)[..., None]
    return x @ (2 * mass[:, :1, None] * gram) if uniform else (x * mass[..., None]) @ (2 * gram)


def _normalised_cost(reduced: Tensor, a: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Costs divided by their scale, and the scale: the RMS of each problem's row-centred costs, 1 where they are
    constant; b m n -> b m n, b.
    """
    largest = torch.maximum(reduced.amax((1, 2)), -reduced.amin((1, 2))).clamp(min=torch.finfo(reduced.dtype).tiny)
    cost = reduced / largest[:, None, None]  # so that squares neither vanish nor overflow
    rms = torch.linalg.vecdot(cost.square().sum(1), a).div(count[:, 0]).sqrt()
    rms = torch.where(largest * rms == 0, 1.0 / largest, rms)
    return cost.div_(rms[:, None, None]), largest * rms
