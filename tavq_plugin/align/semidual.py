"""The entropic semi-dual of optimal transport, maximised by Newton's method: one unknown a text unit.

For a cost C (n m), masses a (n) and b (m) and blur ε, with log-sum-exp over the units j:

    D(g) = Σ_j b_j g_j − ε Σ_i a_i log Σ_j b_j exp((g_j − C_ij) / ε)

is concave; its maximum is F_ε = min ⟨P, C⟩ + ε KL(P | a bᵀ), and P_ij = a_i q_ij with q the softmax over j
(Genevay et al. 2016, eq. 3; Cuturi & Peyré 2018). The row masses of P are a by construction; the gradient of D is
b − Pᵀ1 and its Hessian −(diag(Pᵀ1) − qᵀ diag(a) q) / ε, m × m, so a pass over the codes costs two products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PASSES_A_LEVEL = 4  # 2 do not suffice on strongly clustered problems
FACTOR = 5.0  # by which the blur falls from level to level
LOOSE = 0.1  # marginal error that ends a level before the last
STEP = 4.0  # longest step, in units of the blur
TINY = 1e-30


class Problem(NamedTuple):
    """A batch of problems, costs in units of each one's own scale; masked entries have cost 0 and mass 0."""

    cost: Tensor  # b n m
    a: Tensor  # b n
    b: Tensor  # b m
    y_mask: Tensor  # b m bool
    epsilon: Tensor  # b


class _State(NamedTuple):
    potentials: Tensor  # b m
    dual: Tensor  # b
    marginal: Tensor  # b m, of the plan over the units
    curvature: Tensor  # b m m, qᵀ diag(a) q


def conditional(problem: Problem, potentials: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of each code over the units, and the log-sum-exp; b m -> b n m, b n."""
    log_b = problem.b.clamp(min=TINY).log().masked_fill(~problem.y_mask, -torch.inf)
    score = (potentials / epsilon[:, None] + log_b)[:, None] - problem.cost / epsilon[:, None, None]
    top = score.amax(2, keepdim=True)
    # far tails are cut where their squares would be denormal: those are many times slower, and weigh nothing
    least = -300.0 if score.dtype == torch.float64 else -40.0
    weight = (score - top).clamp_(min=least).exp_() * problem.y_mask[:, None]
    total = weight.sum(2, keepdim=True)
    return weight / total, (total.log() + top)[..., 0]


def _state(problem: Problem, potentials: Tensor, epsilon: Tensor) -> _State:
    q, lse = conditional(problem, potentials, epsilon)
    dual = (problem.b * potentials).sum(1) - epsilon * (problem.a * lse).sum(1)
    weighted = q * problem.a[..., None]
    return _State(potentials, dual, weighted.sum(1), weighted.mT @ q)


def marginal_error(problem: Problem, marginal: Tensor) -> Tensor:
    """L1 distance of the plan's unit masses from b; b m -> b."""
    return (marginal - problem.b).abs().sum(1)


def _newton_step(problem: Problem, state: _State, epsilon: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The damped Newton step in coordinates scaled by √b, and where Cholesky failed; b m, b bool."""
    b = problem.b
    root = b.clamp(min=TINY).sqrt()
    hessian = torch.diag_embed(state.marginal + damping[:, None] * (b + state.marginal)) - state.curvature
    hessian = hessian + b[:, :, None] * b[:, None, :]  # D does not change along 1: pin it
    scaled = hessian / (root[:, :, None] * root[:, None, :])
    pads = ~problem.y_mask
    scaled = scaled.masked_fill(pads[:, :, None] | pads[:, None, :], 0.0) + torch.diag_embed(pads.to(b.dtype))
    factor, failed = torch.linalg.cholesky_ex(scaled)
    right = ((b - state.marginal) / root).masked_fill(pads, 0.0)
    step = torch.cholesky_solve(right[..., None], factor)[..., 0] / root
    return epsilon[:, None] * step.masked_fill(pads, 0.0), (failed > 0) | ~step.isfinite().all(1)


def _sinkhorn_step(problem: Problem, state: _State, epsilon: Tensor) -> Tensor:
    ratio = problem.b.clamp(min=TINY).log() - state.marginal.clamp(min=TINY).log()
    return (epsilon[:, None] * ratio).masked_fill(~problem.y_mask, 0.0)


def _levels(epsilon: Tensor, warm: bool) -> list[Tensor]:
    """Blur of each level, from 1 (the problem's own scale) down to each problem's target.

    Their number depends on the smallest target, which is read on the host: one synchronisation a call.
    """
    if warm:
        return [epsilon]
    levels, level, least = [], 1.0, epsilon.min().item()
    while level > least * (1 + 1e-9):
        levels.append(epsilon.clamp(min=level))
        level /= FACTOR
    return [*levels, epsilon]


@torch.no_grad()
def maximise(
    problem: Problem,
    *,
    newton: bool = True,
    adaptive: bool = True,
    tolerance: float = 1e-3,
    max_passes: int = 60,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Potentials that maximise D, and the marginal error there; -> b m, b.

    ε falls by `FACTOR` a level, `PASSES_A_LEVEL` passes each, then up to `max_passes` at the target. A pass is a
    Levenberg–Marquardt step: kept where D does not fall, else tried again with more damping; a Sinkhorn step where
    Cholesky fails. `adaptive` stops when every problem is within `tolerance`; else every pass is made.
    """
    potentials = torch.zeros_like(problem.b) if start is None else start.masked_fill(~problem.y_mask, 0.0)
    slack = 8 * torch.finfo(problem.cost.dtype).eps
    levels = _levels(problem.epsilon, start is not None)
    for number, epsilon in enumerate(levels):
        last = number == len(levels) - 1
        damping = torch.full_like(epsilon, 1e-6 if problem.cost.dtype == torch.float64 else 1e-4)
        state = _state(problem, potentials, epsilon)
        for _ in range(max_passes if last else PASSES_A_LEVEL):
            if adaptive:
                near = marginal_error(problem, state.marginal) <= (tolerance if last else LOOSE)
                if (near | ~state.dual.isfinite()).all():
                    break
            step = _sinkhorn_step(problem, state, epsilon)
            if newton:
                damped, failed = _newton_step(problem, state, epsilon, damping)
                step = torch.where(failed[:, None], step, damped)
            longest = step.abs().amax(1, keepdim=True).clamp(min=TINY)
            step = step * (STEP * epsilon[:, None] / longest).clamp(max=1.0)
            tried = _state(problem, state.potentials + step, epsilon)
            kept = tried.dual >= state.dual - slack * (1 + state.dual.abs())
            state = _State(
                *(
                    torch.where(kept.view(-1, *[1] * (new.ndim - 1)), new, old)
                    for new, old in zip(tried, state, strict=True)
                )
            )
            floor = 1e-12 if problem.cost.dtype == torch.float64 else 1e-7
            damping = torch.where(kept, damping / 10, damping * 10).clamp(floor, 1e3)
        potentials = state.potentials
    return potentials, marginal_error(problem, state.marginal)
