"""The entropic semi-dual of optimal transport, maximised by Newton's method: one unknown a text unit.

For a cost C (n m), masses a (n) and b (m) and blur ε, with log-sum-exp over the units j:

    D(g) = Σ_j b_j g_j − ε Σ_i a_i log Σ_j b_j exp((g_j − C_ij) / ε)

is concave; its maximum is F_ε = min ⟨P, C⟩ + ε KL(P | a bᵀ), and P_ij = a_i q_ij with q the softmax over j
(Genevay et al. 2016, eq. 3; Cuturi & Peyré 2018). The row masses of P are a by construction; the gradient of D is
b − Pᵀ1 and its Hessian −(diag(Pᵀ1) − qᵀ diag(a) q) / ε, m × m.

The exponentials are taken once for many steps (a kernel, absorbed anew when the potentials have moved far; Schmitzer
2019): with them D and its gradient are two products of a matrix and a vector, ten times cheaper than the Hessian. So a
pass takes one Hessian and looks at several steps before it makes the best.

A large problem is climbed on a sample of its codes first, whose masses b are then tilted so that its gradient is that
of all codes (the full approximation scheme; Brandt 1977): what is left for all codes is a few passes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FIRST = 0.5  # blur of the first level, as a share of each problem's own scale
FACTOR = 5.0  # by which the blur falls from level to level
PASSES_A_LEVEL = 8  # at most, before the last level; 2 do not suffice on strongly clustered problems
LOOSE = 0.1  # marginal error that ends a level before the last
LENGTHS = (1.0, 0.0, 0.05, 0.15, 0.4, 4.0)  # of a Newton step that are looked at, the whole one first; 0 = stay
DAMPING = 1e-4  # at which a level begins
DRIFT, LONGEST = 8.0, 20.0  # in units of the blur: a kernel's age at which it is taken anew; the longest step
SAMPLE = 256  # codes, at least, on which a large problem is solved first; then `SAMPLE_A_UNIT` a unit
SAMPLE_A_UNIT = 8
AGAIN = 3.0  # blur at which the sample is tilted, in units of the target's
NEAR = 0.03  # marginal error at which the tilted sample is left: its own sampling error is larger
LEAST = 0.1  # share of a unit's mass that a tilt leaves it
FIXED = (10, 10, 20)  # passes of a fixed schedule: the sample, the sample tilted, all codes (or all three on all)
LARGE = 2**15  # entries of a problem's cost from which one pass less is worth a copy of the others
TINY = 1e-30


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

    def every(self, stride: int) -> Problem:
        """The problem of each `stride`-th code, spread over the grid where codes lie in its order."""
        a = self.a[:, ::stride]
        a = a / a.sum(1, keepdim=True).clamp(min=TINY)
        return self._replace(cost=self.cost[..., ::stride].contiguous(), a=a, root_a=a.sqrt())

    def tilted(self, whole: Problem, potentials: Tensor, blur: Tensor) -> Problem:
        """A sample of a whole problem, its masses b such that its D has the whole one's gradient at the potentials."""
        here, there = (_look(p, _kernel(p, potentials, blur), potentials, blur).marginal for p in (self, whole))
        b = torch.maximum(self.b + here - there, LEAST * self.b)
        b = b / b.sum(1, keepdim=True).clamp(min=TINY)
        return self.of(self.cost, self.a, b, self.there > 0, self.epsilon)


class _Kernel(NamedTuple):
    """b exp((g − C) / ε) at some potentials, over what is greatest for each code, or their sum."""

    weight: Tensor  # b m n; means nothing where padded
    top: Tensor  # b n, log of what it is over
    at: Tensor  # b m, the potentials


def _kernel(
    problem: Problem, potentials: Tensor, blur: Tensor, top: Tensor | None = None, out: Tensor | None = None
) -> _Kernel:
    """Taken anew, over the greatest unless `top` is given, in the memory of `out` where given."""
    least = -300.0 if problem.cost.dtype == torch.float64 else -80.0
    offset = potentials / blur[:, None] + problem.log_b
    score = torch.addcmul(offset[..., None], problem.cost, -blur.reciprocal()[:, None, None], out=out)
    top = score.amax(1) if top is None else top
    # far tails weigh nothing; cut, they keep exp out of the range where it is several times slower
    return _Kernel(score.sub_(top[:, None]).clamp_(min=least).exp_(), top, potentials)


def conditional(problem: Problem, potentials: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of each code over the units, and the log-sum-exp; b m -> b m n, b n."""
    weight, top, _ = _kernel(problem, potentials, blur)
    total = problem.there[:, None] @ weight
    return weight.mul_(problem.there[..., None]).div_(total), total[:, 0].log() + top


class _Look(NamedTuple):
    """D and its parts at some potentials, by a kernel."""

    potentials: Tensor  # b m
    dual: Tensor  # b
    marginal: Tensor  # b m, of the plan over the units
    growth: Tensor  # b m, exp of what the potentials have moved since the kernel, in units of the blur; 0 where padded
    total: Tensor  # b n, of the kernel over the units


def _look(problem: Problem, kernel: _Kernel, potentials: Tensor, blur: Tensor) -> _Look:
    return _best(problem, kernel, potentials[:, None], blur, None)[0]


def _best(
    problem: Problem, kernel: _Kernel, potentials: Tensor, blur: Tensor, slack: Tensor | None
) -> tuple[_Look, Tensor | None]:
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
        rows = torch.arange(len(which), device=which.device)
        potentials, dual, growth, total = (part[rows, which] for part in parts)
    marginal = growth * ((problem.a / total)[:, None] @ kernel.weight.mT)[:, 0]
    return _Look(potentials, dual, marginal, growth, total), which


def marginal_error(problem: Problem, marginal: Tensor) -> Tensor:
    """L1 distance of the plan's unit masses from b; b m -> b."""
    return (marginal - problem.b).abs().sum(1)


def _newton_step(problem: Problem, kernel: _Kernel, here: _Look, blur: Tensor, damping: Tensor, room: Tensor) -> Tensor:
    """The damped Newton step in coordinates scaled by √b, NaN where Cholesky failed; b m."""
    half = torch.mul(kernel.weight, (problem.root_a / here.total)[:, None], out=room)
    scaled = here.growth * problem.scaling
    hessian = torch.addcmul(problem.pin, half @ half.mT, scaled[:, :, None] * scaled[:, None, :], value=-1)
    hessian.diagonal(dim1=1, dim2=2).add_(
        torch.addcmul(damping[:, None], here.marginal * problem.inverse, 1 + damping[:, None])
    )
    factor, failed = torch.linalg.cholesky_ex(hessian)
    right = (problem.b - here.marginal) * problem.scaling
    step = torch.cholesky_solve(right[..., None], factor)[..., 0] * problem.scaling * blur[:, None]
    return step.masked_fill_(failed[:, None] > 0, torch.nan)


def _sinkhorn_step(problem: Problem, here: _Look, blur: Tensor) -> Tensor:
    """ε (log b − log Pᵀ1), which made in full never lowers D; b m."""
    return (problem.log_b - here.marginal.clamp(min=TINY).log_()) * (problem.there * blur[:, None])


class _Rules(NamedTuple):
    """What all passes of a climb go by."""

    newton: bool
    adaptive: bool
    tolerance: float
    max_passes: int
    lengths: Tensor  # l, of the Newton step; then the Sinkhorn step
    liking: Tensor  # l + 1, by which D may be worse for rounding's sake: the whole step's is the most

    @classmethod
    def of(cls, newton: bool, adaptive: bool, tolerance: float, max_passes: int, like: Tensor) -> _Rules:
        """Made on the device of `like`, without a copy to it."""
        lengths = torch.stack([like.new_full((), length) for length in LENGTHS])
        liking = like.new_full((len(LENGTHS) + 1,), -1.0)
        liking[:1], liking[-1:] = 2.0, 0.0
        return cls(newton, adaptive, tolerance, max_passes, lengths[:, None], liking)


class _Work(NamedTuple):
    """Where each unfinished problem stands."""

    rows: Tensor  # b, its place in the batch
    problem: Problem
    kernel: _Kernel
    here: _Look
    blur: Tensor  # b, of its present level
    damping: Tensor  # b
    passes: Tensor  # b, made at this level
    fresh: Tensor  # b bool, its level has just begun: kernel and look are yet to be taken

    def take(self, chosen: Tensor) -> _Work:
        """The chosen problems alone."""
        return _Work(*(_Work._part(part, chosen) for part in self))

    @staticmethod
    def _part(part: Tensor | tuple, chosen: Tensor) -> Tensor | tuple:
        return part[chosen] if isinstance(part, Tensor) else type(part)(*(field[chosen] for field in part))


def _begin(problem: Problem, start: Tensor | None, again: float) -> _Work:
    potentials = torch.zeros_like(problem.b) if start is None else start * problem.there
    blur = problem.epsilon.clamp(min=FIRST) if start is None else again * problem.epsilon
    flags = torch.ones_like(blur, dtype=torch.bool)
    kernel = _Kernel(torch.empty_like(problem.cost), torch.zeros_like(problem.a), potentials)
    here = _Look(potentials, blur, problem.b, problem.there, torch.ones_like(problem.a))
    rows = torch.arange(len(blur), device=blur.device)
    return _Work(rows, problem, kernel, here, blur, torch.full_like(blur, DAMPING), torch.zeros_like(blur), flags)


def _advance(work: _Work, rules: _Rules, room: Tensor) -> tuple[_Work, Tensor]:
    """A pass for every problem, each at its own level, with room (b m n) to work in; and which are finished.

    An adaptive one reads the flags and leaves out what no problem needs; the answer is the same but for rounding.
    """
    rows, problem, kernel, here, blur, damping, passes, fresh = work
    drift = torch.linalg.vector_norm(here.potentials - kernel.at, torch.inf, dim=1)
    if not rules.adaptive or fresh.any():
        kernel = _kernel(problem, here.potentials, blur, out=kernel.weight)
        here = _look(problem, kernel, here.potentials, blur)
    elif (drift > DRIFT * blur).any():  # the same D, told by a kernel over its own sum
        top = here.total.log().add_(kernel.top)
        kernel = _kernel(problem, here.potentials, blur, top, kernel.weight)
        here = here._replace(growth=problem.there, total=torch.ones_like(top))

    steps = _sinkhorn_step(problem, here, blur)[:, None]
    liking = None
    if rules.newton:
        step = _newton_step(problem, kernel, here, blur, damping, room)
        steps = torch.cat([step[:, None] * rules.lengths, steps], 1)
        liking = (here.dual.abs() + 1)[:, None] * (8 * torch.finfo(blur.dtype).eps * rules.liking)
    longest = (LONGEST * blur)[:, None, None]  # for each unit: one that must go far does not hold the others up
    steps = torch.minimum(torch.maximum(steps, -longest), longest).add_(here.potentials[:, None])
    here, chosen = _best(problem, kernel, steps, blur, liking)

    passes = passes + 1
    error, last = marginal_error(problem, here.marginal), blur <= problem.epsilon
    near = error <= last * (rules.tolerance - LOOSE) + LOOSE
    over = near | (passes >= last * float(rules.max_passes - PASSES_A_LEVEL) + PASSES_A_LEVEL) | ~here.dual.isfinite()
    falls = over & ~last
    blur = torch.where(falls, torch.maximum(blur / FACTOR, problem.epsilon), blur)
    if chosen is not None:
        whole = (chosen == 0) | (chosen == LENGTHS.index(4.0))
        low = 1e-12 if blur.dtype == torch.float64 else 1e-7
        damping = (damping * 10 ** (1.0 - 2.0 * whole)).clamp_(low, 1e3).masked_fill_(falls, DAMPING)
    return _Work(rows, problem, kernel, here, blur, damping, passes.masked_fill_(falls, 0.0), falls), over & last


@torch.no_grad()
def maximise(
    problem: Problem,
    *,
    newton: bool = True,
    adaptive: bool = True,
    tolerance: float = 1e-5,
    max_passes: int = 100,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Potentials that maximise D, and the marginal error there; -> b m, b.

    Each problem anneals on its own: ε falls by `FACTOR` a level, once the marginal error is below `LOOSE` or after
    `PASSES_A_LEVEL` passes, then up to `max_passes` at the target. A pass makes the best of a Sinkhorn step and some
    lengths of a Levenberg–Marquardt step. A large problem anneals on a strided sample of its codes, which is tilted
    before it comes to the target, and all codes finish what that began: the maximum is the same.

    `adaptive` stops a problem within `tolerance` and goes on with the others (a finished one may get further passes
    beside unfinished ones). Else the passes are `FIXED` in number and nothing is read back from the device.
    """
    n, m = problem.cost.shape[2], problem.cost.shape[1]
    stride = n // max(SAMPLE, SAMPLE_A_UNIT * m)
    how = (newton, adaptive, max_passes)
    if start is not None or not newton or stride <= 1:
        return _climb(problem, *how, tolerance, sum(FIXED), start)
    sample, above = problem.every(stride), AGAIN * problem.epsilon
    start, _ = _climb(sample._replace(epsilon=above), *how, max(tolerance, LOOSE), FIXED[0], None)
    sample = sample.tilted(problem, start, above)
    start, _ = _climb(sample, *how, max(tolerance, NEAR), FIXED[1], start, AGAIN)
    return _climb(problem, *how, tolerance, FIXED[2], start)


def _climb(
    problem: Problem,
    newton: bool,
    adaptive: bool,
    max_passes: int,
    tolerance: float,
    fixed: int,
    start: Tensor | None,
    again: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`again`: blur to go on from `start` at, in units of the target's."""
    work, room = _begin(problem, start, again), torch.empty_like(problem.cost)
    rules = _Rules.of(newton, adaptive, tolerance, max_passes, problem.b)
    if not adaptive:
        for _ in range(fixed):
            work, _ = _advance(work, rules, room)
        return work.here.potentials, marginal_error(problem, work.here.marginal)
    potentials, error = torch.empty_like(problem.b), torch.empty_like(problem.epsilon)
    enough = 1 if problem.cost[0].numel() > LARGE else None
    while True:
        work, finished = _advance(work, rules, room[: len(work.rows)])
        count = int(finished.sum())
        # dropping the finished copies the rest: worth it when they are many or large; a finished one may step on
        if count >= (enough or len(finished) / 2):
            rows = work.rows[finished]
            potentials[rows] = work.here.potentials[finished]
            error[rows] = marginal_error(work.problem, work.here.marginal)[finished]
            if count == len(finished):
                break
            work = work.take((~finished).nonzero()[:, 0])
    return potentials, error
