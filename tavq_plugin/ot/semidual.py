"""The entropic semi-dual of optimal transport between many codes and a few text units: one unknown per unit.

For a cost C (n m), masses a (n) and b (m) and blur ε, with log-sum-exp over the units j:

    D(g) = Σ_j b_j g_j − ε Σ_i a_i log Σ_j b_j exp((g_j − C_ij) / ε)

is concave. Its maximum is F_ε = min ⟨P, C⟩ + ε KL(P | a bᵀ), and P_ij = a_i q_ij with q the softmax over j
(Genevay et al. 2016, eq. 3; Cuturi & Peyré 2018). The row masses of P are a by construction. The gradient of D is
b − Pᵀ1 and its Hessian −(diag(Pᵀ1) − qᵀ diag(a) q) / ε, m × m.

One set of exponentials (a `Kernel`) serves many steps; it is computed anew when the potentials have moved far
(Schmitzer 2019). With a kernel, D and its gradient are two matrix-vector products, ten times cheaper than the Hessian.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_UNIT_SHARE = 0.1  # least share of its mass that a unit keeps in `Problem.with_gradient_of`
TINY = 1e-30
# Entries of a plan below these are set to 0, so that no product with them is a subnormal number: an Intel processor
# takes many times longer for those. The kernel keeps its tails: a unit that no code has reached yet grows from them.
PLAN_CUTOFF = {torch.float32: 1e-25, torch.float64: 1e-150}  # for products of an entry with points and masses
PAIR_CUTOFF = {torch.float32: 1e-18, torch.float64: 1e-150}  # for products of two entries


class Problem(NamedTuple):
    """A batch of problems. Costs are in units of each problem's scale; masked entries have cost 0 and mass 0.

    Units come before codes in the cost, so that sums over the few units run along whole rows of codes. `Problem.of`
    computes once what every pass reads.
    """

    cost: Tensor  # b m n
    a: Tensor  # b n
    b: Tensor  # b m
    unit_mask: Tensor  # b m, 1, and 0 where padded
    epsilon: Tensor  # b, the target blur
    sqrt_a: Tensor  # b n
    log_b: Tensor  # b m; far below all others where padded
    inverse_b: Tensor  # b m, 1 / b, 0 where padded
    inverse_sqrt_b: Tensor  # b m, scales the Newton system
    # b m m, √b √bᵀ, and 1 on the padded diagonal; makes the Hessian regular, as D is constant along 1
    null_space: Tensor

    @classmethod
    def of(cls, cost: Tensor, a: Tensor, b: Tensor, y_mask: Tensor, epsilon: Tensor) -> Problem:
        """A problem from its costs (b m n), masses, mask and target blur."""
        unit_mask, positive = y_mask.to(b.dtype), b.clamp(min=TINY)
        log_b = positive.log().masked_fill(~y_mask, -1e30)
        sqrt_b = positive.sqrt() * unit_mask
        null_space = sqrt_b[:, :, None] * sqrt_b[:, None, :] + torch.diag_embed(1 - unit_mask)
        inverse = unit_mask / positive
        return cls(cost, a, b, unit_mask, epsilon, a.sqrt(), log_b, inverse, inverse.sqrt(), null_space)

    def padded(self, m: int, n: int) -> Problem:
        """The same problem, padded with units and codes without mass until its cost is b m n."""
        units, codes = m - self.b.shape[1], n - self.a.shape[1]
        if not (units or codes):
            return self
        cost, a = F.pad(self.cost, (0, codes, 0, units)), F.pad(self.a, (0, codes))
        return self.of(cost, a, F.pad(self.b, (0, units)), F.pad(self.unit_mask, (0, units)) > 0, self.epsilon)

    def subsample(self, stride: int) -> Problem:
        """The problem of every `stride`-th code; these spread over the grid where codes are in raster order."""
        a = self.a[:, ::stride]
        a = a / a.sum(1, keepdim=True).clamp(min=TINY)
        return self._replace(cost=self.cost[..., ::stride].contiguous(), a=a, sqrt_a=a.sqrt())

    def with_gradient_of(self, full: Problem, potentials: Tensor, blur: Tensor) -> Problem:
        """The subsample with masses b changed so that its D has the full problem's gradient at the potentials."""
        problems = (self, full)
        own, target = (evaluate_dual(p, kernel_at(p, potentials, blur), potentials, blur).marginal for p in problems)
        b = torch.maximum(self.b + own - target, MIN_UNIT_SHARE * self.b)
        b = b / b.sum(1, keepdim=True).clamp(min=TINY)
        return self.of(self.cost, self.a, b, self.unit_mask > 0, self.epsilon)


class Kernel(NamedTuple):
    """exp(log b + (g − C) / ε − log_scale) at some potentials."""

    weight: Tensor  # b m n; undefined where padded
    log_scale: Tensor  # b n, the largest exponent of each code, or the log of its sum over the units
    potentials: Tensor  # b m


def kernel_at(
    problem: Problem, potentials: Tensor, blur: Tensor, log_scale: Tensor | None = None, out: Tensor | None = None
) -> Kernel:
    """The kernel at some potentials (b m), written to `out` if given; the default scale is each code's maximum."""
    lowest = -300.0 if problem.cost.dtype == torch.float64 else -80.0
    offset = potentials / blur[:, None] + problem.log_b
    score = torch.addcmul(offset[..., None], problem.cost, -blur.reciprocal()[:, None, None], out=out)
    log_scale = score.amax(1) if log_scale is None else log_scale
    # clamped tails weigh nothing, and keep exp out of the range where it is several times slower
    return Kernel(score.sub_(log_scale[:, None]).clamp_(min=lowest).exp_(), log_scale, potentials)


def conditional_plan(problem: Problem, potentials: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Each code's softmax over the units, 0 below `PLAN_CUTOFF`, and its log-sum-exp; b m -> b m n, b n."""
    weight, log_scale, _ = kernel_at(problem, potentials, blur)
    total = problem.unit_mask[:, None] @ weight
    plan = weight.mul_(problem.unit_mask[..., None]).div_(total)
    return F.threshold(plan, PLAN_CUTOFF[plan.dtype], 0.0, inplace=True), total[:, 0].log() + log_scale


class DualEvaluation(NamedTuple):
    """D and its parts at some potentials, computed with a kernel."""

    potentials: Tensor  # b m
    dual: Tensor  # b
    marginal: Tensor  # b m, masses of the plan's units
    growth: Tensor  # b m, exp of the potentials' move since the kernel, over the blur; 0 where padded
    total: Tensor  # b n, the kernel times `growth`, summed over the units


def evaluate_dual(problem: Problem, kernel: Kernel, potentials: Tensor, blur: Tensor) -> DualEvaluation:
    """D at some potentials, b m."""
    return best_evaluation(problem, kernel, potentials[:, None], blur, None)[0]


def best_evaluation(
    problem: Problem, kernel: Kernel, potentials: Tensor, blur: Tensor, slack: Tensor | None
) -> tuple[DualEvaluation, Tensor | None]:
    """D at the candidates (b l m) with the largest D + slack (b l), and their numbers (b).

    With `slack` None there is one candidate (l = 1), and the numbers are None.
    """
    growth = ((potentials - kernel.potentials[:, None]) / blur[:, None, None]).exp_() * problem.unit_mask[:, None]
    total = growth @ kernel.weight  # b l n
    log_sum = total.log().add_(kernel.log_scale[:, None])
    dual = (problem.b[:, None] @ potentials.mT - (problem.a * blur[:, None])[:, None] @ log_sum.mT)[:, 0]
    chosen, parts = None, (potentials, dual, growth, total)
    if slack is None:
        potentials, dual, growth, total = (part[:, 0] for part in parts)
    else:
        chosen = (dual + slack).nan_to_num_(-torch.inf, torch.inf, -torch.inf).argmax(1)
        flat = chosen + torch.arange(0, dual.numel(), dual.shape[1], device=chosen.device)
        potentials, dual, growth, total = (part.flatten(0, 1).index_select(0, flat) for part in parts)
    marginal = growth * ((problem.a / total)[:, None] @ kernel.weight.mT)[:, 0]
    return DualEvaluation(potentials, dual, marginal, growth, total), chosen


def marginal_error(problem: Problem, marginal: Tensor) -> Tensor:
    """L1 distance of the plan's unit masses from b; b m -> b."""
    return (marginal - problem.b).abs().sum(1)
