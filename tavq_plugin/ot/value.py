"""F_ε of a batch of problems and its gradient: one node of the graph, whatever the solver."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tavq_plugin.ot.emd import emd
from tavq_plugin.ot.newton import maximise
from tavq_plugin.ot.semidual import Problem, conditional


class How(NamedTuple):
    """The settings of `solve` that are no tensors."""

    cost: str
    epsilon: float
    relative: bool
    solver: str
    adaptive: bool
    tolerance: float
    max_passes: int
    uniform: bool  # no mask and no weights: every code has mass 1 / n


class Value(torch.autograd.Function):
    """Codes, units and masses to F_ε = D(g) at the dual's maximum, where ∂D/∂g = 0 and so ∂F_ε/∂C = P.

    x b n c, y b m d, project c d or None (W = 1), a b n, b b m; what has no mass takes no part. Saves x, y and each
    code's plan; the backward is Pᵀ y and P x, and their products with W. What a code costs whatever the unit,
    Σ a |x W|², cannot change the plan: it enters by the codes' moments, and the projected codes are never formed.
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
        present: Tensor,
        warm_start: Tensor | None,
        how: How,
    ) -> tuple[Tensor, ...]:
        """-> value b, potentials b m, blur b, marginal error b, reduced cost b m n, constant b, plan b m n."""
        squared = how.cost == "sqeuclidean"
        pads, count = ~y_mask[..., None], y_mask.sum(1).clamp(min=1)[:, None]
        # pads are zeroed before any arithmetic meets them, so what lies there cannot leak
        y, void = y.masked_fill(pads, 0.0), None if how.uniform else (a == 0)[..., None]
        mean = y.sum(1, keepdim=True) / count[..., None]
        central = (y - mean).masked_fill_(pads, 0.0)  # reduced costs then have mean 0 over the units of each code
        if squared and project is None:  # distances keep their digits far from the origin
            x, y, mean = x - mean, central, torch.zeros_like(mean)
            x = x if void is None else x.masked_fill_(void, 0.0)
        elif void is not None and (squared or project is not None):
            x, void = x.masked_fill(void, 0.0), None
        reduced = _times(central, project) @ x.mT  # b m n
        if not squared and void is not None:  # no copy of x: a pad's products are no other code's
            reduced = reduced.masked_fill_(void.mT, 0.0)
        spread = central.square().sum(2)
        middle = spread.sum(1, keepdim=True) / count
        if squared:
            offset = (spread - middle + 2 * (central * mean).sum(2)).masked_fill(~y_mask, 0.0)
            reduced = reduced.mul_(-2).add_(offset[..., None])
        else:
            reduced = reduced.neg_()
        gram = moments = None
        if squared and project is not None:
            gram, moments = project @ project.mT, _moments(x, a, how.uniform)
        constant = _constant(x, a, project, mean, middle, gram, moments, squared)

        cost, scale = _scaled(reduced, a, count)
        if how.solver == "emd":
            q, potentials, soft = emd(reduced, a, b)
            blur, error = torch.zeros_like(scale), ((q @ a[..., None])[..., 0] - b).abs().sum(1)
        else:
            blur = torch.full_like(scale, how.epsilon) / (1.0 if how.relative else scale)
            problem = Problem.of(cost, a, b, y_mask | ~present[:, None], blur)
            potentials, error = maximise(
                problem,
                newton=how.solver == "newton",
                adaptive=how.adaptive,
                tolerance=how.tolerance,
                max_passes=how.max_passes,
                start=None if warm_start is None else warm_start.to(a.dtype) / scale[:, None],
            )
            q, lse = conditional(problem, potentials, blur)
            potentials, blur = potentials * scale[:, None], blur * scale
            soft = -blur[:, None] * lse
        value = (b * potentials).sum(1) + (a * soft).sum(1) + constant

        ctx.how = how
        ctx.save_for_backward(x, y, project, a, b, q, soft, potentials, blur, mean, middle, gram, moments)
        shown = torch.where(b > 0, potentials - (b * potentials).sum(1, keepdim=True), 0.0)
        rest = (shown, blur, torch.where(present, error, 0.0), reduced, constant, q)
        ctx.mark_non_differentiable(*rest)
        return value, *rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The envelope theorem: the plan to the points; least reduced costs to a; g − ε Pᵀ1 / b to b."""
        x, y, project, a, b, q, soft, potentials, blur, mean, middle, gram, moments = ctx.saved_tensors
        squared, uniform = ctx.how.cost == "sqeuclidean", ctx.how.uniform
        mass = grad[:, None] * a
        # the plan is weight · q: a uniform mass goes to the smaller factors
        plan, weight = (q, mass[:, :1, None]) if uniform else (mass[:, None] * q, None)  # b m n
        to_x = to_y = to_project = to_a = to_b = None
        if ctx.needs_input_grad[0]:
            units = _weighted(_times(y, project), weight)
            if squared:
                to_x = _own(x, mass, gram, uniform).baddbmm_(plan.mT, units, alpha=-2)
            else:
                to_x = plan.mT @ units.neg()
        if any(ctx.needs_input_grad[1:4]) and not (squared or uniform) and project is None:
            x = x.masked_fill((a == 0)[..., None], 0.0)
        seen = _weighted(plan @ x, weight) if any(ctx.needs_input_grad[1:3]) else None  # b m c
        if ctx.needs_input_grad[1]:
            to_y = seen if project is None else seen @ project
            if squared:
                to_y = 2 * (y * _weighted(plan.sum(2, keepdim=True), weight) - to_y)
            else:
                to_y = to_y.neg()
        if ctx.needs_input_grad[2]:
            to_project = (-2.0 if squared else -1.0) * torch.einsum("bmc,bmd->cd", seen, y)
            if squared:
                to_project = to_project + 2 * torch.einsum("b,bij->ij", grad, moments) @ project
        if ctx.needs_input_grad[3]:
            to_a = grad[:, None] * (soft + _rows(x, project, mean, middle, squared))
        if ctx.needs_input_grad[4]:
            to_b = potentials - blur[:, None] * (q @ a[..., None])[..., 0] / b
            to_b = grad[:, None] * to_b.masked_fill(b == 0, 0.0)
        return to_x, to_y, to_project, to_a, to_b, None, None, None, None


def _times(y: Tensor, project: Tensor | None) -> Tensor:
    """Units seen from the codes' space, W y; b m d -> b m c."""
    return y if project is None else y @ project.mT


def _weighted(part: Tensor, weight: Tensor | None) -> Tensor:
    return part if weight is None else part * weight


def _moments(x: Tensor, a: Tensor, uniform: bool) -> Tensor:
    """Σ a x xᵀ; b n c -> b c c. One block off the diagonal stands for both."""
    half, scaled = x.shape[2] // 2, x if uniform else x * a[..., None]
    upper, lower = scaled[..., :half].mT @ x, scaled[..., half:].mT @ x[..., half:]
    whole = torch.cat([upper, torch.cat([upper[..., half:].mT, lower], 2)], 1)
    return whole / x.shape[1] if uniform else whole


def _constant(
    x: Tensor,
    a: Tensor,
    project: Tensor | None,
    mean: Tensor,
    middle: Tensor,
    gram: Tensor | None,
    moments: Tensor | None,
    squared: bool,
) -> Tensor:
    """Σ a r, r the part of a code's costs that all units share (`_rows`), by moments; -> b."""
    if project is None and squared:  # x and y are central
        own = torch.linalg.vecdot(a, torch.linalg.vector_norm(x, dim=2).square())
        return own + a.sum(1) * middle[:, 0]
    if not squared and project is None:  # x's pads are as they came
        return -torch.linalg.vecdot(a, (x @ mean.mT)[..., 0].masked_fill(a == 0, 0.0))
    first = torch.linalg.vecdot((a[:, None] @ x)[:, 0], _times(mean, project)[:, 0])  # Σ a x W · mean
    if not squared:
        return -first
    second = (moments * gram).sum((1, 2))  # Σ a |x W|²
    return second - 2 * first + a.sum(1) * (mean.square().sum((1, 2)) + middle[:, 0])


def _rows(x: Tensor, project: Tensor | None, mean: Tensor, middle: Tensor, squared: bool) -> Tensor:
    """The part of a code's costs that all units share: |x W − mean|² + middle, or −x W · mean; b n c -> b n."""
    seen = x if project is None else x @ project
    if not squared:
        return -(seen * mean).sum(2)
    return (seen - mean).square().sum(2) + middle


def _own(x: Tensor, mass: Tensor, gram: Tensor | None, uniform: bool) -> Tensor:
    """Gradient of Σ mass |x W|² in x: 2 mass x W Wᵀ; b n c -> b n c."""
    if gram is None:
        return x * (2 * mass)[..., None]
    return x @ (2 * mass[:, :1, None] * gram) if uniform else (x * mass[..., None]) @ (2 * gram)


def _scaled(reduced: Tensor, a: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Costs over their scale, and it: RMS of each problem's row-centred costs, 1 where they never vary; b m n, b."""
    largest = torch.maximum(reduced.amax((1, 2)), -reduced.amin((1, 2))).clamp(min=torch.finfo(reduced.dtype).tiny)
    cost = reduced / largest[:, None, None]  # so that squares neither vanish nor overflow
    rms = torch.linalg.vecdot(cost.square().sum(1), a).div(count[:, 0]).sqrt()
    rms = torch.where(largest * rms == 0, 1.0 / largest, rms)
    return cost.div_(rms[:, None, None]), largest * rms
