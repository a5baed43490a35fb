"""Newton's method on the semi-dual: potentials that maximise D, from none.

A pass takes one Hessian and looks at several steps before it makes the best. A large problem is climbed on a sample of
its codes first, whose masses b are then tilted so that its gradient is that of all codes (the full approximation
scheme; Brandt 1977): what is left for all codes is a few passes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.ot.cuda_graph import replayed
from tavq_plugin.ot.semidual import FAINT_TWICE, TINY, Kernel, Look, Problem, best, kernel_at, look, marginal_error

FIRST = 0.5  # blur of the first level, as a share of each problem's own scale
FACTOR = 3.0  # by which the blur falls from level to level
PASSES_A_LEVEL = 8  # at most, before the last level; 2 do not suffice on strongly clustered problems
LOOSE = 0.1  # marginal error that ends a level before the last
LENGTHS = (1.0, 0.0, 0.05, 0.15, 0.4, 4.0)  # of a Newton step that are looked at, the whole one first; 0 = stay
DAMPING = 1e-4  # at which a level begins
DRIFT, LONGEST = 8.0, 20.0  # in units of the blur: a kernel's age at which it is taken anew; the longest step
SAMPLE = 256  # codes, at least, on which a large problem is solved first; then `SAMPLE_A_UNIT` a unit
SAMPLE_A_UNIT = 8
AGAIN = 3.0  # blur at which the sample is tilted, in units of the target's
NEAR = 0.03  # marginal error at which the tilted sample is left: its own sampling error is larger
FIXED = (12, 10, 20)  # passes of a fixed schedule: the sample, the sample tilted, all codes (or all three on all)
FIXED_ROUGHLY = (9, 4, 9)  # the same for Newton where the tolerance is `ROUGH` or more
ROUGH = 1e-3
LARGE = 2**14  # entries of a problem's cost from which one pass less is worth a copy of the others


def _newton_step(problem: Problem, kernel: Kernel, here: Look, blur: Tensor, damping: Tensor, room: Tensor) -> Tensor:
    """The damped Newton step in coordinates scaled by √b, NaN where Cholesky failed; b m."""
    half = torch.mul(kernel.weight, (problem.root_a / here.total)[:, None], out=room)
    half = F.threshold_(half, FAINT_TWICE[half.dtype], 0.0)
    scaled = here.growth * problem.scaling
    hessian = torch.addcmul(problem.pin, half @ half.mT, scaled[:, :, None] * scaled[:, None, :], value=-1)
    hessian.diagonal(dim1=1, dim2=2).add_(
        torch.addcmul(damping[:, None], here.marginal * problem.inverse, 1 + damping[:, None])
    )
    factor, failed = torch.linalg.cholesky_ex(hessian)
    right = ((problem.b - here.marginal) * problem.scaling)[..., None]
    if factor.is_cuda:  # cholesky_solve is MAGMA's there for a batch: slow for these, and no part of a graph
        half = torch.linalg.solve_triangular(factor, right, upper=False)
        step = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    else:
        step = torch.cholesky_solve(right, factor)
    step = step[..., 0] * problem.scaling * blur[:, None]
    return step.masked_fill_(failed[:, None] > 0, torch.nan)


def _sinkhorn_step(problem: Problem, here: Look, blur: Tensor) -> Tensor:
    """ε (log b − log Pᵀ1), which made in full never lowers D; b m."""
    return (problem.log_b - here.marginal.clamp(min=TINY).log_()) * (problem.there * blur[:, None])


class _Rules(NamedTuple):
    """What all passes of a climb go by."""

    newton: bool
    adaptive: bool
    tolerance: float
    max_passes: int
    lengths: Tensor  # l 1, of the Newton step; then comes the Sinkhorn step
    liking: Tensor  # l + 1, by which D may be worse for rounding's sake: the whole step's is the most
    trust: Tensor  # l + 1, what the damping is multiplied by where a step was the best

    @classmethod
    def of(cls, newton: bool, adaptive: bool, tolerance: float, max_passes: int, like: Tensor) -> _Rules:
        """Made on the device of `like`, without a copy to it."""

        def tensor(values: list[float]) -> Tensor:
            return torch.stack([like.new_full((), value) for value in values])

        liking = tensor([2.0, *[-1.0] * (len(LENGTHS) - 1), 0.0]) * (8 * torch.finfo(like.dtype).eps)
        trust = tensor([*(0.1 if length >= 1 else 10.0 for length in LENGTHS), 10.0])
        return cls(newton, adaptive, tolerance, max_passes, tensor([*LENGTHS])[:, None], liking, trust)


class _Work(NamedTuple):
    """Where each unfinished problem stands."""

    rows: Tensor  # b, its place in the batch
    problem: Problem
    kernel: Kernel
    here: Look
    blur: Tensor  # b, of its present level
    goal: Tensor  # b, marginal error that ends it
    left: Tensor  # b, passes that end it
    damping: Tensor  # b
    fresh: Tensor  # b bool, its level has just begun: kernel and look are yet to be taken

    def take(self, chosen: Tensor) -> _Work:
        """The chosen problems alone."""
        return _Work(*(_Work._part(part, chosen) for part in self))

    @staticmethod
    def _part(part: Tensor | tuple, chosen: Tensor) -> Tensor | tuple:
        if isinstance(part, Tensor):
            return part.index_select(0, chosen)
        return type(part)(*(field.index_select(0, chosen) for field in part))


def _begin(problem: Problem, start: Tensor | None, again: float, rules: _Rules) -> _Work:
    potentials = torch.zeros_like(problem.b) if start is None else start.masked_fill(problem.there == 0, 0.0)
    blur = problem.epsilon.clamp(min=FIRST) if start is None else again * problem.epsilon
    kernel = Kernel(torch.empty_like(problem.cost), torch.zeros_like(problem.a), potentials)
    here = Look(potentials, blur, problem.b, problem.there, torch.ones_like(problem.a))
    rows = torch.arange(len(blur), device=blur.device)
    return _Work(rows, problem, kernel, here, *_level(problem, blur, rules), torch.ones_like(rows, dtype=torch.bool))


def _level(problem: Problem, blur: Tensor, rules: _Rules) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blur, goal, passes and damping with which a level begins."""
    last = (blur <= problem.epsilon).to(blur.dtype)
    goal = LOOSE * (1 - last) + rules.tolerance * last
    left = PASSES_A_LEVEL * (1 - last) + rules.max_passes * last
    return blur, goal, left, torch.full_like(blur, DAMPING)


def _advance(work: _Work, rules: _Rules, room: Tensor) -> tuple[_Work, Tensor | None]:
    """A pass for every problem, each at its own level, with room (b m n) to work in; and which are finished, if any.

    An adaptive one reads the flags and leaves out what no problem needs; the answer is the same but for rounding.
    """
    rows, problem, kernel, here, blur, goal, left, damping, fresh = work
    if not rules.adaptive or fresh.any():
        kernel = kernel_at(problem, here.potentials, blur, out=kernel.weight)
        here = look(problem, kernel, here.potentials, blur)
    elif (torch.linalg.vector_norm(here.potentials - kernel.at, torch.inf, dim=1) > DRIFT * blur).any():
        top = here.total.log().add_(kernel.top)  # the same D, told by a kernel over its own sum
        kernel = kernel_at(problem, here.potentials, blur, top, kernel.weight)
        here = here._replace(growth=problem.there, total=torch.ones_like(top))

    steps, liking = _sinkhorn_step(problem, here, blur)[:, None], None
    if rules.newton:
        step = _newton_step(problem, kernel, here, blur, damping, room)
        steps = torch.cat([step[:, None] * rules.lengths, steps], 1)
        liking = (here.dual.abs() + 1)[:, None] * rules.liking
    longest = (LONGEST * blur)[:, None, None]  # for each unit: one that must go far does not hold the others up
    steps = torch.minimum(torch.maximum(steps, -longest), longest).add_(here.potentials[:, None])
    here, chosen = best(problem, kernel, steps, blur, liking)
    if chosen is not None:
        low = 1e-12 if blur.dtype == torch.float64 else 1e-7
        damping = (damping * rules.trust.index_select(0, chosen)).clamp_(low, 1e3)

    left = left - 1
    over = ~(marginal_error(problem, here.marginal) > goal) | (left <= 0)  # NaN too is over
    if rules.adaptive and not over.any():
        return work._replace(kernel=kernel, here=here, left=left, damping=damping, fresh=over), None
    last = blur <= problem.epsilon
    falls, finished = over & ~last, over & last
    new = _level(problem, torch.maximum(blur / FACTOR, problem.epsilon), rules)
    old = (blur, goal, left, damping)
    level = (torch.where(falls, after, before) for after, before in zip(new, old, strict=True))
    return _Work(rows, problem, kernel, here, *level, falls), finished


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
    beside unfinished ones). Else the passes are `FIXED` in number, about half as many for a `tolerance` of `ROUGH` or
    more, and nothing is read back from the device; on a GPU they are replayed as one graph.
    """
    if adaptive or start is not None:
        return _maximum(problem, newton, adaptive, tolerance, max_passes, start)

    def climb(problem: Problem) -> tuple[Tensor, Tensor]:
        return _maximum(problem, newton, False, tolerance, max_passes, None)

    return replayed(climb, problem, newton, tolerance, max_passes)


def _maximum(
    problem: Problem, newton: bool, adaptive: bool, tolerance: float, max_passes: int, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    n, m = problem.cost.shape[2], problem.cost.shape[1]
    stride = n // max(SAMPLE, SAMPLE_A_UNIT * m)
    how, fixed = (newton, adaptive, max_passes), FIXED_ROUGHLY if newton and tolerance >= ROUGH else FIXED
    if start is not None or not newton or stride <= 1:
        return _climb(problem, *how, tolerance, sum(fixed), start)
    sample, above = problem.every(stride), AGAIN * problem.epsilon
    start, _ = _climb(sample._replace(epsilon=above), *how, max(tolerance, LOOSE), fixed[0], None)
    sample = sample.tilted(problem, start, above)
    start, _ = _climb(sample, *how, max(tolerance, NEAR), fixed[1], start, AGAIN)
    return _climb(problem, *how, tolerance, fixed[2], start)


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
    rules = _Rules.of(newton, adaptive, tolerance, max_passes, problem.b)
    work, room = _begin(problem, start, again, rules), torch.empty_like(problem.cost)
    if not adaptive:
        for _ in range(fixed):
            work, _ = _advance(work, rules, room)
        return work.here.potentials, marginal_error(problem, work.here.marginal)
    potentials, error = torch.empty_like(problem.b), torch.empty_like(problem.epsilon)
    large = problem.cost[0].numel() > LARGE
    while True:
        work, finished = _advance(work, rules, room[: len(work.rows)])
        count = 0 if finished is None else int(finished.sum())
        # dropping the finished copies the rest: worth it when they are many or large; a finished one may step on
        if count >= (1 if large else len(work.rows) / 2):
            done = finished.nonzero()[:, 0]
            potentials[work.rows[done]] = work.here.potentials[done]
            error[work.rows[done]] = marginal_error(work.problem, work.here.marginal)[done]
            if count == len(work.rows):
                return potentials, error
            work = work.take((~finished).nonzero()[:, 0])
