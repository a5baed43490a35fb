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

FIRST = 0.5  # blur of the first level, as a share of each problem's own scale
FACTOR = 5.0  # by which the blur falls from level to level
PASSES_A_LEVEL = 8  # at most, before the last level; 2 do not suffice on strongly clustered problems
LOOSE = 0.1  # marginal error that ends a level before the last
STEP, LONGEST = 4.0, 64.0  # longest step, in units of the blur: at first, and after steps that were all kept
SAMPLE = 256  # codes, at least, on which a large problem is solved first; then `SAMPLE_A_UNIT` a unit
SAMPLE_A_UNIT = 8
NEAR = 0.03  # marginal error at which the sample is left: its own sampling error is larger
FIXED = (16, 40)  # passes of a fixed schedule: annealing (on the sample, or on all), then at the target on all
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


class _State(NamedTuple):
    potentials: Tensor  # b m
    dual: Tensor  # b
    marginal: Tensor  # b m, of the plan over the units
    curvature: Tensor  # b m m, q diag(a) qᵀ


def conditional(problem: Problem, potentials: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of each code over the units, and the log-sum-exp; b m -> b m n, b n."""
    offset = potentials / epsilon[:, None] + problem.log_b
    score = torch.addcmul(offset[..., None], problem.cost, (-1 / epsilon)[:, None, None])
    top = score.amax(1, keepdim=True)
    # far tails are cut where their squares would be denormal: those are many times slower, and weigh nothing
    least = -300.0 if score.dtype == torch.float64 else -40.0
    weight = torch.threshold_(score.sub_(top), least, -torch.inf).exp_()
    total = weight.sum(1, keepdim=True)
    return weight.div_(total), (total.log_() + top)[:, 0]


def _state(problem: Problem, potentials: Tensor, epsilon: Tensor) -> _State:
    q, lse = conditional(problem, potentials, epsilon)
    dual = (problem.b * potentials).sum(1) - epsilon * (problem.a * lse).sum(1)
    half = q.mul_(problem.root_a[:, None])
    curvature = half @ half.mT
    return _State(potentials, dual, curvature.sum(2), curvature)  # Σ_k q_ik = 1: no product of its own


def marginal_error(problem: Problem, marginal: Tensor) -> Tensor:
    """L1 distance of the plan's unit masses from b; b m -> b."""
    return (marginal - problem.b).abs().sum(1)


def _newton_step(problem: Problem, state: _State, epsilon: Tensor, damping: Tensor) -> Tensor:
    """The damped Newton step in coordinates scaled by √b, NaN where Cholesky failed; b m."""
    inverse = problem.inverse
    hessian = problem.pin - inverse[:, :, None] * state.curvature * inverse[:, None, :]
    own = torch.addcmul(state.marginal, damping[:, None], problem.b + state.marginal)
    hessian.diagonal(dim1=1, dim2=2).add_(own * inverse.square())
    factor, failed = torch.linalg.cholesky_ex(hessian)
    right = (problem.b - state.marginal) * inverse
    step = torch.cholesky_solve(right[..., None], factor)[..., 0] * inverse * epsilon[:, None]
    return step.masked_fill(failed[:, None] > 0, torch.nan)


def _sinkhorn_step(problem: Problem, state: _State, epsilon: Tensor) -> Tensor:
    ratio = problem.log_b - state.marginal.clamp(min=TINY).log()
    return (epsilon[:, None] * ratio).masked_fill(~problem.y_mask, 0.0)


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the chosen problems, `old` for the others; b bool, b ... -> b ..."""
    return torch.where(chosen.view(-1, *[1] * (new.ndim - 1)), new, old)


class _Work(NamedTuple):
    """Where each unfinished problem stands."""

    rows: Tensor  # b, its place in the batch
    problem: Problem
    state: _State  # at `blur`; undefined where fresh
    blur: Tensor  # b, of its present level
    damping: Tensor  # b
    reach: Tensor  # b, longest step, in units of the blur
    passes: Tensor  # b, steps tried at this level
    fresh: Tensor  # b bool, its level has just begun: the state is yet to be computed
    refused: Tensor  # b bool, its latest step was

    def take(self, chosen: Tensor) -> _Work:
        """The chosen problems alone."""
        return _Work(*(_Work._part(part, chosen) for part in self))

    @staticmethod
    def _part(part: Tensor | tuple, chosen: Tensor) -> Tensor | tuple:
        return part[chosen] if isinstance(part, Tensor) else type(part)(*(field[chosen] for field in part))


def _begin(problem: Problem, start: Tensor | None) -> _Work:
    b = len(problem.b)
    flags = torch.ones(b, dtype=torch.bool, device=problem.b.device)
    potentials = torch.zeros_like(problem.b) if start is None else start.masked_fill(~problem.y_mask, 0.0)
    zeros = torch.zeros_like(problem.epsilon)
    state = _State(potentials, zeros, problem.b, torch.diag_embed(problem.b))
    blur = problem.epsilon.clamp(min=FIRST) if start is None else problem.epsilon
    return _Work(
        torch.arange(b, device=flags.device), problem, state, blur, zeros, zeros + STEP, zeros - 1, flags, ~flags
    )


def _advance(work: _Work, newton: bool, tolerance: float, max_passes: int, adaptive: bool) -> tuple[_Work, Tensor]:
    """One pass over the codes: a step for every problem, each at its own level; and which are finished.

    `adaptive` looks at the flags and leaves out what no problem needs; the result is the same.
    """
    rows, problem, state, blur, damping, reach, passes, fresh, refused = work
    double = problem.cost.dtype == torch.float64
    if newton:
        step = _newton_step(problem, state, blur, damping)
        other = refused | ~step.sum(1).isfinite()
        if not adaptive or other.any():
            step = _where(other, _sinkhorn_step(problem, state, blur), step)  # a Sinkhorn step never lowers D
    else:
        step = _sinkhorn_step(problem, state, blur)
    length = step.abs().amax(1).clamp(min=TINY) / blur
    step = step * (reach / length).clamp(max=1.0)[:, None]
    tried = _state(problem, state.potentials + step.masked_fill(fresh[:, None], 0.0), blur)
    slack = 8 * torch.finfo(problem.cost.dtype).eps
    kept = fresh | (tried.dual >= state.dual - slack * (1 + state.dual.abs()))
    if adaptive and kept.all():
        state = tried
    else:
        state = _State(*(_where(kept, new, old) for new, old in zip(tried, state, strict=True)))
    damping = torch.where(kept, damping / 10, damping * 10).clamp(1e-12 if double else 1e-7, 1e3)
    damping = torch.where(fresh, 1e-6 if double else 1e-4, damping)
    longer = torch.where(length > reach, 2 * reach, reach).clamp(max=LONGEST)
    reach = torch.where(fresh, STEP, torch.where(kept, longer, (reach / 4).clamp(min=1.0)))
    passes = passes + 1

    error, last = marginal_error(problem, state.marginal), blur <= problem.epsilon
    near = error <= torch.where(last, tolerance, LOOSE)
    over = near | (passes >= torch.where(last, float(max_passes), float(PASSES_A_LEVEL))) | ~state.dual.isfinite()
    falls = over & ~last
    blur = torch.where(falls, torch.maximum(blur / FACTOR, problem.epsilon), blur)
    passes = torch.where(falls, -1.0, passes)
    return _Work(rows, problem, state, blur, damping, reach, passes, falls, ~kept), over & last


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
    `PASSES_A_LEVEL` passes, then up to `max_passes` at the target. A pass is a Levenberg–Marquardt step: kept where
    D does not fall, else followed by a Sinkhorn step, as where Cholesky fails, and more damping. A large problem
    anneals on a strided sample of its codes, and all codes finish what that began: the maximum is the same.

    `adaptive` stops a problem within `tolerance` and goes on with the others (a finished one may get further passes
    beside unfinished ones). Else the passes are `FIXED` in number and nothing is read back from the device.
    """
    n, m = problem.cost.shape[2], problem.cost.shape[1]
    stride = n // max(SAMPLE, SAMPLE_A_UNIT * m)
    if start is None and newton and stride > 1:
        sample = problem.every(stride)
        start, _ = _climb(sample, newton, adaptive, max(tolerance, NEAR), max_passes, None, FIXED[0])
        return _climb(problem, newton, adaptive, tolerance, max_passes, start, FIXED[1])
    return _climb(problem, newton, adaptive, tolerance, max_passes, start, sum(FIXED))


def _climb(
    problem: Problem,
    newton: bool,
    adaptive: bool,
    tolerance: float,
    max_passes: int,
    start: Tensor | None,
    fixed: int,
) -> tuple[Tensor, Tensor]:
    work = _begin(problem, start)
    if not adaptive:
        for _ in range(fixed):
            work, _ = _advance(work, newton, tolerance, max_passes, adaptive)
        return work.state.potentials, marginal_error(problem, work.state.marginal)
    potentials, error = torch.empty_like(problem.b), torch.empty_like(problem.epsilon)
    while len(work.rows):
        work, finished = _advance(work, newton, tolerance, max_passes, adaptive)
        count = int(finished.sum())
        # dropping the finished copies the rest: worth it when they are many; stepping on does a finished one no harm
        if 2 * count >= len(finished):
            done = work.take(finished)
            potentials[done.rows] = done.state.potentials
            error[done.rows] = marginal_error(done.problem, done.state.marginal)
            work = work.take(~finished)
    return potentials, error
