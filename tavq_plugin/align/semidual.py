"""The entropic semi-dual of optimal transport, maximised by Newton's method: one unknown a text unit.

For a cost C (n m), masses a (n) and b (m) and blur ε, with log-sum-exp over the units j:

    D(g) = Σ_j b_j g_j − ε Σ_i a_i log Σ_j b_j exp((g_j − C_ij) / ε)

is concave; its maximum is F_ε = min ⟨P, C⟩ + ε KL(P | a bᵀ), and P_ij = a_i q_ij with q the softmax over j
(Genevay et al. 2016, eq. 3; Cuturi & Peyré 2018). The row masses of P are a by construction; the gradient of D is
b − Pᵀ1 and its Hessian −(diag(Pᵀ1) − qᵀ diag(a) q) / ε, m × m.

The exponentials are taken once for many steps (a kernel, absorbed anew when the potentials have moved far; Schmitzer
2019): with them D and its gradient are two products of a matrix and a vector, ten times cheaper than the Hessian. So a
pass takes one Hessian and looks at several steps before it makes the best.
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
DRIFT, LONGEST = 8.0, 20.0  # in units of the blur: a kernel's age at which it is taken anew; the longest step
SAMPLE = 256  # codes, at least, on which a large problem is solved first; then `SAMPLE_A_UNIT` a unit
SAMPLE_A_UNIT = 8
NEAR = 0.03  # marginal error at which the sample is left: its own sampling error is larger
AGAIN = 3.0  # blur at which all codes go on from the sample's potentials, in units of the target's
FIXED = (14, 26)  # passes of a fixed schedule: annealing (on the sample, or on all), then at the target on all
TINY = 1e-30


class Problem(NamedTuple):
    """A batch of problems, costs in units of each one's own scale; masked entries have cost 0 and mass 0.

    Units lie before codes: sums over the few units then run along whole rows of codes. Made by `Problem.of`, which
    works out once what every pass reads.
    """

    cost: Tensor  # b m n
    a: Tensor  # b n
    b: Tensor  # b m
    y_mask: Tensor  # b m bool
    epsilon: Tensor  # b, the target blur
    root_a: Tensor  # b n, √a
    log_b: Tensor  # b m, −∞ where padded
    inverse: Tensor  # b m, 1 / √b, 0 where padded: the Newton system's scaling
    pin: Tensor  # b m m, √b √bᵀ, which pins what D does not change along (1), and 1 on the padded diagonal

    @classmethod
    def of(cls, cost: Tensor, a: Tensor, b: Tensor, y_mask: Tensor, epsilon: Tensor) -> Problem:
        """A problem from its costs (b m n), masses, mask and target blur."""
        positive = b.clamp(min=TINY)
        log_b = positive.log().masked_fill(~y_mask, -torch.inf)
        root = positive.sqrt().masked_fill(~y_mask, 0.0)
        pin = root[:, :, None] * root[:, None, :] + torch.diag_embed((~y_mask).to(b.dtype))
        inverse = positive.rsqrt().masked_fill(~y_mask, 0.0)
        return cls(cost, a, b, y_mask, epsilon, a.sqrt(), log_b, inverse, pin)

    def every(self, stride: int) -> Problem:
        """The problem of each `stride`-th code, spread over the grid where codes lie in its order."""
        a = self.a[:, ::stride]
        a = a / a.sum(1, keepdim=True).clamp(min=TINY)
        return self._replace(cost=self.cost[..., ::stride].contiguous(), a=a, root_a=a.sqrt())


class _Kernel(NamedTuple):
    """b exp((g − C) / ε) at some potentials, over its greatest unit for each code."""

    weight: Tensor  # b m n
    top: Tensor  # b n, log of what it is over
    at: Tensor  # b m, the potentials


def _kernel(problem: Problem, potentials: Tensor, blur: Tensor, out: Tensor | None = None) -> _Kernel:
    """Taken anew, in the memory of `out` where given."""
    least = -300.0 if problem.cost.dtype == torch.float64 else -80.0
    offset = potentials / blur[:, None] + problem.log_b
    score = torch.addcmul(offset[..., None], problem.cost, (-1 / blur)[:, None, None], out=out)
    top = score.amax(1, keepdim=True)
    # far tails are cut before they are denormal: those are many times slower, and weigh nothing
    return _Kernel(torch.threshold_(score.sub_(top), least, -torch.inf).exp_(), top[:, 0], potentials)


def conditional(problem: Problem, potentials: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of each code over the units, and the log-sum-exp; b m -> b m n, b n."""
    kernel = _kernel(problem, potentials, blur)
    total = kernel.weight.sum(1)
    return kernel.weight.div_(total[:, None]), total.log_() + kernel.top


class _Look(NamedTuple):
    """D and its parts at some potentials, by a kernel; l potentials a problem, or (without l) the chosen ones."""

    potentials: Tensor  # b l m
    dual: Tensor  # b l
    marginal: Tensor  # b l m, of the plan over the units
    growth: Tensor  # b l m, exp of what the potentials have moved since the kernel, in units of the blur
    total: Tensor  # b l n, of the kernel over the units

    def pick(self, which: Tensor) -> _Look:
        """One of each problem's looks; b -> without l."""
        rows = torch.arange(len(which), device=which.device)
        return _Look(*(field[rows, which] for field in self))


def _look(problem: Problem, kernel: _Kernel, potentials: Tensor, blur: Tensor) -> _Look:
    blur, mass = blur[:, None], problem.a[:, None]
    growth = ((potentials - kernel.at[:, None]) / blur[..., None]).exp()
    total = growth @ kernel.weight
    dual = (problem.b[:, None] * potentials).sum(2) - blur * (mass * (total.log() + kernel.top[:, None])).sum(2)
    return _Look(potentials, dual, growth * ((mass / total) @ kernel.weight.mT), growth, total)


def marginal_error(problem: Problem, marginal: Tensor) -> Tensor:
    """L1 distance of the plan's unit masses from b; b m -> b."""
    return (marginal - problem.b).abs().sum(1)


def _newton_step(problem: Problem, kernel: _Kernel, here: _Look, blur: Tensor, damping: Tensor) -> Tensor:
    """The damped Newton step in coordinates scaled by √b, NaN where Cholesky failed; b m."""
    half = kernel.weight * (problem.root_a / here.total)[:, None]
    scaled = here.growth * problem.inverse
    hessian = problem.pin - scaled[:, :, None] * (half @ half.mT) * scaled[:, None, :]
    own = torch.addcmul(here.marginal, damping[:, None], problem.b + here.marginal)
    hessian.diagonal(dim1=1, dim2=2).add_(own * problem.inverse.square())
    factor, failed = torch.linalg.cholesky_ex(hessian)
    right = (problem.b - here.marginal) * problem.inverse
    step = torch.cholesky_solve(right[..., None], factor)[..., 0] * problem.inverse * blur[:, None]
    return step.masked_fill(failed[:, None] > 0, torch.nan)


def _sinkhorn_step(problem: Problem, here: _Look, blur: Tensor) -> Tensor:
    """ε (log b − log Pᵀ1), which made in full never lowers D; b m."""
    ratio = problem.log_b - here.marginal.clamp(min=TINY).log()
    return (blur[:, None] * ratio).masked_fill(~problem.y_mask, 0.0)


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
    (b, m, n), like = problem.cost.shape, problem.b
    potentials = torch.zeros_like(like) if start is None else start.masked_fill(~problem.y_mask, 0.0)
    blur = problem.epsilon.clamp(min=FIRST) if start is None else again * problem.epsilon
    zeros, flags = torch.zeros_like(blur), torch.ones(b, dtype=torch.bool, device=like.device)
    kernel = _Kernel(like.new_zeros(b, m, n), like.new_zeros(b, n), potentials)
    here = _Look(potentials, zeros, like, torch.ones_like(like), like.new_ones(b, n))
    return _Work(torch.arange(b, device=like.device), problem, kernel, here, blur, zeros, zeros, flags)


def _advance(work: _Work, newton: bool, tolerance: float, max_passes: int, adaptive: bool) -> tuple[_Work, Tensor]:
    """A pass for every problem, each at its own level; and which are finished.

    `adaptive` reads the flags and leaves out what no problem needs; the answer is the same but for rounding.
    """
    rows, problem, kernel, here, blur, damping, passes, fresh = work
    double = problem.cost.dtype == torch.float64
    old = fresh | ((here.potentials - kernel.at).abs().amax(1) > DRIFT * blur)
    if not adaptive or old.any():
        kernel = _kernel(problem, here.potentials, blur, kernel.weight)
        here = _look(problem, kernel, here.potentials[:, None], blur).pick(torch.zeros_like(rows))

    damping = torch.where(fresh, 1e-6 if double else 1e-4, damping)
    steps = [_sinkhorn_step(problem, here, blur)]
    if newton:
        step = _newton_step(problem, kernel, here, blur, damping)
        steps += [length * step for length in LENGTHS]
    longest = (LONGEST * blur)[:, None, None]  # for each unit: one that must go far does not hold the others up
    steps = torch.stack(steps, 1).clamp(-longest, longest)
    looks = _look(problem, kernel, here.potentials[:, None] + steps, blur)
    score = looks.dual.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    if newton:  # the whole step, unless another is better beyond rounding
        slack = 8 * torch.finfo(problem.cost.dtype).eps * (1 + here.dual.abs())
        score = score + torch.stack([torch.zeros_like(slack), 2 * slack, *[-slack] * (len(LENGTHS) - 1)], 1)
    chosen = score.argmax(1)
    here = looks.pick(chosen)
    whole = (chosen == 1) | (chosen == 1 + LENGTHS.index(4.0))
    damping = torch.where(whole, damping / 10, damping * 10).clamp(1e-12 if double else 1e-7, 1e3)

    passes = passes + 1
    error, last = marginal_error(problem, here.marginal), blur <= problem.epsilon
    near = error <= torch.where(last, tolerance, LOOSE)
    over = near | (passes >= torch.where(last, float(max_passes), float(PASSES_A_LEVEL))) | ~here.dual.isfinite()
    falls = over & ~last
    blur = torch.where(falls, torch.maximum(blur / FACTOR, problem.epsilon), blur)
    passes = torch.where(falls, 0.0, passes)
    return _Work(rows, problem, kernel, here, blur, damping, passes, falls), over & last


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
    lengths of a Levenberg–Marquardt step. A large problem anneals on a strided sample of its codes, and all codes
    finish what that began: the maximum is the same.

    `adaptive` stops a problem within `tolerance` and goes on with the others (a finished one may get further passes
    beside unfinished ones). Else the passes are `FIXED` in number and nothing is read back from the device.
    """
    n, m = problem.cost.shape[2], problem.cost.shape[1]
    stride = n // max(SAMPLE, SAMPLE_A_UNIT * m)
    if start is None and newton and stride > 1:
        sample = problem.every(stride)
        start, _ = _climb(sample, newton, adaptive, max(tolerance, NEAR), max_passes, FIXED[0], None)
        return _climb(problem, newton, adaptive, tolerance, max_passes, FIXED[1], start, AGAIN)
    return _climb(problem, newton, adaptive, tolerance, max_passes, sum(FIXED), start)


def _climb(
    problem: Problem,
    newton: bool,
    adaptive: bool,
    tolerance: float,
    max_passes: int,
    fixed: int,
    start: Tensor | None,
    again: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`again`: blur to go on from `start` at, in units of the target's."""
    work = _begin(problem, start, again)
    if not adaptive:
        for _ in range(fixed):
            work, _ = _advance(work, newton, tolerance, max_passes, adaptive)
        return work.here.potentials, marginal_error(problem, work.here.marginal)
    potentials, error = torch.empty_like(problem.b), torch.empty_like(problem.epsilon)
    while True:
        work, finished = _advance(work, newton, tolerance, max_passes, adaptive)
        count = int(finished.sum())
        # dropping the finished copies the rest: worth it when they are many; stepping on does a finished one no harm
        if 2 * count >= len(finished):
            rows = work.rows[finished]
            potentials[rows] = work.here.potentials[finished]
            error[rows] = marginal_error(work.problem, work.here.marginal)[finished]
            if count == len(finished):
                break
            work = work.take((~finished).nonzero()[:, 0])
    return potentials, error
