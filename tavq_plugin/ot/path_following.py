"""Path following on the semi-dual: from an infinite blur to the target one in a fixed number of equal passes.

In h = g / ε and β = 1 / ε the maximiser of D is a smooth path h(β). It begins at h(0) = 0, where every code's plan is
b. With the marginal p = Pᵀ1 and H = diag(p) − qᵀ diag(a) q, a pass at β does two things with one factor of H:

- it corrects h by the Newton step H⁻¹ (b − p), whose entries are damped by asinh: short steps are kept, and long ones,
  for which the quadratic model does not hold, grow like a logarithm (log-sum-exp is self-concordant in this sense);
- it predicts h at the next β along the tangent dh/dβ = H⁻¹ c, where c_j = Σ_i a_i q_ij (C_ij − Σ_k q_ik C_ik).

No step is tried and refused, so nothing is read back and a pass is about twenty operations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.ot.semidual import PAIR_CUTOFF, Problem, marginal_error

FIRST_BLUR = 1.0  # of the first pass after the one at infinity, as a share of each problem's own scale


class PathSchedule(NamedTuple):
    """How many passes there are, and how much they are damped."""

    blurs: int  # finite ones, in geometric progression to the target; one pass each, and one at the infinite blur
    polish: int  # further passes at the target blur
    damping: float  # of the Newton system, as a share of its diagonal

    @classmethod
    def of_tolerance(cls, tolerance: float) -> PathSchedule:
        """The cheapest schedule that was measured to reach the tolerance (benchmarks/results/schedule.md)."""
        return ROUGH if tolerance >= ROUGH_TOLERANCE else FINE


ROUGH_TOLERANCE = 1e-3
ROUGH = PathSchedule(blurs=10, polish=0, damping=1e-6)
FINE = PathSchedule(blurs=24, polish=4, damping=1e-6)


def follow_path(problem: Problem, schedule: PathSchedule) -> tuple[Tensor, Tensor]:
    """Potentials near the maximum of D, and the marginal error there; -> b m, b. Reads nothing back."""
    beta = _inverse_blurs(problem.epsilon, schedule.blurs)
    gaps = [*beta.diff(dim=0), *[None] * (1 + schedule.polish)]
    regular = _regular_part(problem, schedule.damping)
    offset = problem.log_b  # log b + h, what the softmax needs
    for number, gap in enumerate(gaps):
        offset = _after_pass(problem, offset, beta[min(number, schedule.blurs)], gap, regular, 1 + schedule.damping)
    marginal = (_plan(problem, offset, beta[-1]) @ problem.a[..., None])[..., 0]
    return (offset - problem.log_b) * problem.epsilon[:, None], marginal_error(problem, marginal)


def _regular_part(problem: Problem, damping: float) -> Tensor:
    """What is added to the Hessian: b bᵀ, as D is constant along 1; the damping; 1 where padded; -> b m m."""
    diagonal = torch.diag_embed(torch.add(1 - problem.unit_mask, problem.b, alpha=damping))
    return torch.addcmul(diagonal, problem.b[:, :, None], problem.b[:, None, :])


def _inverse_blurs(epsilon: Tensor, count: int) -> Tensor:
    """β of every pass: 0, then `count` values in geometric progression to 1 / ε; b -> count + 1 b 1."""
    first = epsilon.clamp(min=FIRST_BLUR)
    share = torch.linspace(0, 1, count, device=epsilon.device, dtype=epsilon.dtype)[:, None]
    return F.pad((first / epsilon) ** share / first, (0, 0, 1, 0))[..., None]


def _plan(problem: Problem, offset: Tensor, beta: Tensor) -> Tensor:
    """Each code's softmax over the units at log b + h and β; b m, b 1 -> b m n."""
    return torch.addcmul(offset[..., None], problem.cost, beta[..., None], value=-1).softmax(1)


def _after_pass(
    problem: Problem, offset: Tensor, beta: Tensor, gap: Tensor | None, regular: Tensor, grown: float
) -> Tensor:
    """log b + h after a correction at β and, unless `gap` is None, a prediction at β + gap; b m, b 1, b 1 -> b m.

    regular is b m m; `grown`, 1 + the damping, multiplies the marginal on the Hessian's diagonal.
    """
    half = _plan(problem, offset, beta).mul_(problem.sqrt_a[:, None])
    if not half.is_cuda:  # products of small entries are subnormal, which only a CPU is slow at
        half = F.threshold(half, PAIR_CUTOFF[half.dtype], 0.0, inplace=True)
    root = problem.sqrt_a[..., None]
    marginal = half @ root
    hessian = torch.baddbmm(regular, half, half.mT, alpha=-1)
    hessian.diagonal(dim1=1, dim2=2).add_(marginal[..., 0], alpha=grown)
    right = problem.b[..., None] - marginal
    if gap is not None:
        cost = half * problem.cost  # √a q C
        right = torch.cat([right, torch.baddbmm(cost @ root, half, cost.sum(1)[..., None], alpha=-1)], 2)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if factor.is_cuda:  # batched cholesky_solve is MAGMA's on a GPU: slow for small systems, and no graph can record it
        half_way = torch.linalg.solve_triangular(factor, right, upper=False)
        step = torch.linalg.solve_triangular(factor.mT, half_way, upper=True)
    else:
        step = torch.cholesky_solve(right, factor)
    step = step.masked_fill_((failed > 0)[:, None, None], 0.0)
    offset = offset + step[..., 0].asinh()
    return offset if gap is None else torch.addcmul(offset, step[..., 1], gap)
