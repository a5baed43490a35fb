"""The entropic semi-dual of optimal transport between many codes and a few text units: one unknown a unit.

For a cost C (n m), masses a (n) and b (m) and blur ε, with log-sum-exp over the units j:

    D(g) = Σ_j b_j g_j − ε Σ_i a_i log Σ_j b_j exp((g_j − C_ij) / ε)

is concave; its maximum is F_ε = min ⟨P, C⟩ + ε KL(P | a bᵀ), and P_ij = a_i q_ij with q the softmax over j
(Genevay et al. 2016, eq. 3; Cuturi & Peyré 2018). The row masses of P are a by construction; the gradient of D is
b − Pᵀ1 and its Hessian −(diag(Pᵀ1) − qᵀ diag(a) q) / ε, m × m.

The exponentials are taken once for many steps (a kernel, absorbed anew when the potentials have moved far; Schmitzer
2019): with them D and its gradient are two products of a matrix and a vector, ten times cheaper than the Hessian.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 0.1  # share of a unit's mass that a tilt leaves it
TINY = 1e-30
# below these a plan's entries are cut to 0: what they are multiplied by then makes no subnormal numbers, which an Intel
# processor is many times slower with. The kernel keeps its tails, by which a unit that is yet to be reached grows.
FAINT = {torch.float32: 1e-25, torch.float64: 1e-150}  # against points and masses
FAINT_TWICE = {torch.float32: 1e-18, torch.float64: 1e-150}  # against each other


class Problem(NamedTuple):
    """A batch of problems, costs in units of each one's own scale; masked entries have cost 0 and mass 0.

    Units lie before codes: sums over the few units then run along whole rows of codes. Made by `Problem.of`, which
    works out once what every pass reads.
    """

    cost: Tensor  # b m n
    a: Tensor  # b n
    b: Tensor  # b m
    there: Tensor  # b m, 1, and 0 where padded
    epsilon: Tensor  # b, the target blur
    root_a: Tensor  # b n, √a
    log_b: Tensor  # b m, far below every other where padded
    inverse: Tensor  # b m, 1 / b, 0 where padded
    scaling: Tensor  # b m, of the Newton system: its root
    pin: Tensor  # b m m, √b √bᵀ, which pins what D does not change along (1), and 1 on the padded diagonal

    @classmethod
    def of(cls, cost: Tensor, a: Tensor, b: Tensor, y_mask: Tensor, epsilon: Tensor) -> Problem:
        """A problem from its costs (b m n), masses, mask and target blur."""
        there, positive = y_mask.to(b.dtype), b.clamp(min=TINY)
        log_b = positive.log().masked_fill(~y_mask, -1e30)
        root = positive.sqrt() * there
        pin = root[:, :, None] * root[:, None, :] + torch.diag_embed(1 - there)
        inverse = there / positive
        return cls(cost, a, b, there, epsilon, a.sqrt(), log_b, inverse, inverse.sqrt(), pin)

    def padded(self, m: int, n: int) -> Problem:
        """The same problem with units and codes added that have no mass; its cost becomes b m n."""
        units, codes = m - self.b.shape[1], n - self.a.shape[1]
        if not (units or codes):
            return self
        cost, a = F.pad(self.cost, (0, codes, 0, units)), F.pad(self.a, (0, codes))
        return self.of(cost, a, F.pad(self.b, (0, units)), F.pad(self.there, (0, units)) > 0, self.epsilon)

    def every(self, stride: int) -> Problem:
        """The problem of each `stride`-th code, spread over the grid where codes lie in its order."""
        a = self.a[:, ::stride]
        a = a / a.sum(1, keepdim=True).clamp(min=TINY)
        return self._replace(cost=self.cost[..., ::stride].contiguous(), a=a, root_a=a.sqrt())

    def tilted(self, whole: Problem, potentials: Tensor, blur: Tensor) -> Problem:
        """A sample of a whole problem, its masses b such that its D has the whole one's gradient at the potentials."""
        here, there = (look(p, kernel_at(p, potentials, blur), potentials, blur).marginal for p in (self, whole))
        b = torch.maximum(self.b + here - there, LEAST * self.b)
        b = b / b.sum(1, keepdim=True).clamp(min=TINY)
        return self.of(self.cost, self.a, b, self.there > 0, self.epsilon)


class Kernel(NamedTuple):
    """b exp((g − C) / ε) at some potentials, over what is greatest for each code, or their sum."""

    weight: Tensor  # b m n; means nothing where padded
    top: Tensor  # b n, log of what it is over
    at: Tensor  # b m, the potentials


def kernel_at(
    problem: Problem, potentials: Tensor, blur: Tensor, top: Tensor | None = None, out: Tensor | None = None
) -> Kernel:
    """Taken anew, over the greatest unless `top` is given, in the memory of `out` where given."""
    least = -300.0 if problem.cost.dtype == torch.float64 else -80.0
    offset = potentials / blur[:, None] + problem.log_b
    score = torch.addcmul(offset[..., None], problem.cost, -blur.reciprocal()[:, None, None], out=out)
    top = score.amax(1) if top is None else top
    # far tails weigh nothing; cut, they keep exp out of the range where it is several times slower
    return Kernel(score.sub_(top[:, None]).clamp_(min=least).exp_(), top, potentials)


def conditional(problem: Problem, potentials: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of each code over the units, 0 where `FAINT`, and the log-sum-exp; b m -> b m n, b n."""
    weight, top, _ = kernel_at(problem, potentials, blur)
    total = problem.there[:, None] @ weight
    plan = weight.mul_(problem.there[..., None]).div_(total)
    return F.threshold_(plan, FAINT[plan.dtype], 0.0), total[:, 0].log() + top


class Look(NamedTuple):
    """D and its parts at some potentials, by a kernel."""

    potentials: Tensor  # b m
    dual: Tensor  # b
    marginal: Tensor  # b m, of the plan over the units
    growth: Tensor  # b m, exp of what the potentials have moved since the kernel, in units of the blur; 0 where padded
    total: Tensor  # b n, of the kernel over the units


def look(problem: Problem, kernel: Kernel, potentials: Tensor, blur: Tensor) -> Look:
    """At some potentials, b m."""
    return best(problem, kernel, potentials[:, None], blur, None)[0]


def best(
    problem: Problem, kernel: Kernel, potentials: Tensor, blur: Tensor, slack: Tensor | None
) -> tuple[Look, Tensor | None]:
    """The look at those potentials (b l m) where D + slack (b l) is greatest, and which they are (b); l = 1: None."""
    growth = ((potentials - kernel.at[:, None]) / blur[:, None, None]).exp_() * problem.there[:, None]
    total = growth @ kernel.weight  # b l n
    soft = total.log().add_(kernel.top[:, None])
    dual = (problem.b[:, None] @ potentials.mT - (problem.a * blur[:, None])[:, None] @ soft.mT)[:, 0]
    which, parts = None, (potentials, dual, growth, total)
    if slack is None:
        potentials, dual, growth, total = (part[:, 0] for part in parts)
    else:
        which = (dual + slack).nan_to_num_(-torch.inf, torch.inf, -torch.inf).argmax(1)
        flat = which + torch.arange(0, dual.numel(), dual.shape[1], device=which.device)
        potentials, dual, growth, total = (part.flatten(0, 1).index_select(0, flat) for part in parts)
    marginal = growth * ((problem.a / total)[:, None] @ kernel.weight.mT)[:, 0]
    return Look(potentials, dual, marginal, growth, total), which


def marginal_error(problem: Problem, marginal: Tensor) -> Tensor:
    """L1 distance of the plan's unit masses from b; b m -> b."""
    return (marginal - problem.b).abs().sum(1)
