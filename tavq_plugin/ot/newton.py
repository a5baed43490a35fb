"""Newton's method on the semi-dual: the potentials that maximise D.

A pass computes one Hessian, evaluates several steps and takes the best one. A large problem is first solved on a
sample of its codes. The sample's masses b are then changed so that its gradient is that of all codes (the full
approximation scheme; Brandt 1977), which leaves a few passes over all codes. A fixed schedule of Newton steps follows
the path of maximisers over the blur (`path_following`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.ot.cuda_graph import GRAPHS, GraphCache
from tavq_plugin.ot.path_following import PathSchedule, follow_path
from tavq_plugin.ot.semidual import (
    PAIR_CUTOFF,
    TINY,
    DualEvaluation,
    Kernel,
    Problem,
    best_evaluation,
    evaluate_dual,
    kernel_at,
    marginal_error,
)

FIRST_BLUR = 0.5  # of the first blur level, as a share of each problem's own scale
BLUR_FACTOR = 3.0  # the blur is divided by this from level to level
MAX_LEVEL_PASSES = 8  # of each level before the last; 2 do not suffice on strongly clustered problems
LEVEL_TOLERANCE = 0.1  # marginal error that ends a level before the last
STEP_LENGTHS = (1.0, 0.0, 0.05, 0.15, 0.4, 4.0)  # of the evaluated Newton steps, in multiples of the full one
FIRST_DAMPING = 1e-4  # of each level
MAX_DRIFT = 8.0  # in units of the blur; potentials that are further from their kernel's need a new one
MAX_STEP = 20.0  # in units of the blur
MIN_SAMPLE = 256  # fewest codes of a sample
SAMPLE_PER_UNIT = 8  # fewest codes of a sample for each unit
CORRECTION_BLUR = 3.0  # blur at which the sample's masses are changed, in units of the target's
SAMPLE_TOLERANCE = 0.03  # marginal error that ends the passes over the changed sample: its sampling error is larger
FIXED_PASSES = 42  # of a fixed schedule of Sinkhorn steps, or from given potentials
LARGE_COST = 2**14  # entries of a cost; above it, one pass less over a problem is worth a copy of the others


def _newton_step(
    problem: Problem, kernel: Kernel, current: DualEvaluation, blur: Tensor, damping: Tensor, workspace: Tensor
) -> Tensor:
    """The damped Newton step in coordinates scaled by √b, NaN where Cholesky failed; b m."""
    half = torch.mul(kernel.weight, (problem.sqrt_a / current.total)[:, None], out=workspace)
    half = F.threshold(half, PAIR_CUTOFF[half.dtype], 0.0, inplace=True)
    scaled = current.growth * problem.inverse_sqrt_b
    hessian = torch.addcmul(problem.null_space, half @ half.mT, scaled[:, :, None] * scaled[:, None, :], value=-1)
    hessian.diagonal(dim1=1, dim2=2).add_(
        torch.addcmul(damping[:, None], current.marginal * problem.inverse_b, 1 + damping[:, None])
    )
    factor, failed = torch.linalg.cholesky_ex(hessian)
    right = ((problem.b - current.marginal) * problem.inverse_sqrt_b)[..., None]
    if factor.is_cuda:  # batched cholesky_solve is MAGMA's on a GPU: slow for small systems, and no graph can record it
        half = torch.linalg.solve_triangular(factor, right, upper=False)
        step = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    else:
        step = torch.cholesky_solve(right, factor)
    step = step[..., 0] * problem.inverse_sqrt_b * blur[:, None]
    return step.masked_fill_(failed[:, None] > 0, torch.nan)


def _sinkhorn_step(problem: Problem, current: DualEvaluation, blur: Tensor) -> Tensor:
    """ε (log b − log Pᵀ1); the full step never lowers D; b m."""
    return (problem.log_b - current.marginal.clamp(min=TINY).log_()) * (problem.unit_mask * blur[:, None])


class _PassSettings(NamedTuple):
    """What is the same for all passes over a problem."""

    newton: bool
    adaptive: bool
    tolerance: float
    max_passes: int
    lengths: Tensor  # l 1, of the Newton step; the Sinkhorn step comes after these
    slack: Tensor  # l + 1, what D may lack because of rounding; largest for the full Newton step
    damping_factors: Tensor  # l + 1, the damping is multiplied by that of the best step

    @classmethod
    def of(cls, newton: bool, adaptive: bool, tolerance: float, max_passes: int, like: Tensor) -> _PassSettings:
        """Settings whose tensors are made on the device of `like`, without a copy to it."""

        def tensor(values: list[float]) -> Tensor:
            return torch.stack([like.new_full((), value) for value in values])

        slack = tensor([2.0, *[-1.0] * (len(STEP_LENGTHS) - 1), 0.0]) * (8 * torch.finfo(like.dtype).eps)
        factors = tensor([*(0.1 if length >= 1 else 10.0 for length in STEP_LENGTHS), 10.0])
        return cls(newton, adaptive, tolerance, max_passes, tensor([*STEP_LENGTHS])[:, None], slack, factors)


class _BlurLevel(NamedTuple):
    """The blur level that each problem is at; every field b."""

    blur: Tensor
    tolerance: Tensor  # marginal error that ends it
    passes_left: Tensor
    damping: Tensor

    @classmethod
    def begin(cls, problem: Problem, blur: Tensor, settings: _PassSettings) -> _BlurLevel:
        """A blur level before its first pass."""
        last = (blur <= problem.epsilon).to(blur.dtype)
        tolerance = LEVEL_TOLERANCE * (1 - last) + settings.tolerance * last
        passes = MAX_LEVEL_PASSES * (1 - last) + settings.max_passes * last
        return cls(blur, tolerance, passes, torch.full_like(blur, FIRST_DAMPING))

    def replaced(self, other: _BlurLevel, where: Tensor) -> _BlurLevel:
        """The other level where the mask (b) is true."""
        return _BlurLevel(*(torch.where(where, new, old) for new, old in zip(other, self, strict=True)))


class _Progress(NamedTuple):
    """The state of each unfinished problem."""

    rows: Tensor  # b, the problem's place in the batch
    problem: Problem
    kernel: Kernel
    current: DualEvaluation
    level: _BlurLevel
    new_level: Tensor  # b bool, the level has had no pass yet, and kernel and evaluation are the previous level's

    @classmethod
    def start(cls, problem: Problem, start: Tensor | None, blur_factor: float, settings: _PassSettings) -> _Progress:
        """Before the first pass: from 0 at the first blur, or from `start` at a multiple of the target blur."""
        if start is None:
            potentials, blur = torch.zeros_like(problem.b), problem.epsilon.clamp(min=FIRST_BLUR)
        else:
            potentials, blur = start.masked_fill(problem.unit_mask == 0, 0.0), blur_factor * problem.epsilon
        kernel = Kernel(torch.empty_like(problem.cost), torch.zeros_like(problem.a), potentials)
        current = DualEvaluation(potentials, blur, problem.b, problem.unit_mask, torch.ones_like(problem.a))
        rows = torch.arange(len(blur), device=blur.device)
        level = _BlurLevel.begin(problem, blur, settings)
        return cls(rows, problem, kernel, current, level, torch.ones_like(rows, dtype=torch.bool))

    def select(self, chosen: Tensor) -> _Progress:
        """The chosen problems alone."""

        def rows_of(parts: tuple[Tensor, ...]) -> list[Tensor]:
            return [part.index_select(0, chosen) for part in parts]

        rows, new_level = rows_of((self.rows, self.new_level))
        return _Progress(
            rows,
            Problem(*rows_of(self.problem)),
            Kernel(*rows_of(self.kernel)),
            DualEvaluation(*rows_of(self.current)),
            _BlurLevel(*rows_of(self.level)),
            new_level,
        )


def _after_pass(progress: _Progress, settings: _PassSettings, workspace: Tensor) -> tuple[_Progress, Tensor | None]:
    """One pass over every problem, each at its own level, and which problems are finished (None: no level has ended).

    workspace is b m n. An adaptive pass reads the flags from the device and skips what no problem needs; the result is
    the same but for rounding.
    """
    rows, problem, kernel, current, level, new_level = progress
    blur, damping = level.blur, level.damping
    if not settings.adaptive or new_level.any():
        kernel = kernel_at(problem, current.potentials, blur, out=kernel.weight)
        current = evaluate_dual(problem, kernel, current.potentials, blur)
    elif (torch.linalg.vector_norm(current.potentials - kernel.potentials, torch.inf, dim=1) > MAX_DRIFT * blur).any():
        log_sum = current.total.log().add_(kernel.log_scale)  # scaled by its sum, the kernel gives the same D
        kernel = kernel_at(problem, current.potentials, blur, log_sum, kernel.weight)
        current = current._replace(growth=problem.unit_mask, total=torch.ones_like(log_sum))

    steps, slack = _sinkhorn_step(problem, current, blur)[:, None], None
    if settings.newton:
        step = _newton_step(problem, kernel, current, blur, damping, workspace)
        steps = torch.cat([step[:, None] * settings.lengths, steps], 1)
        slack = (current.dual.abs() + 1)[:, None] * settings.slack
    # clamped per unit, so that one with far to go does not shorten the others' steps
    longest = (MAX_STEP * blur)[:, None, None]
    steps = torch.minimum(torch.maximum(steps, -longest), longest).add_(current.potentials[:, None])
    current, chosen = best_evaluation(problem, kernel, steps, blur, slack)
    if chosen is not None:
        lowest = 1e-12 if blur.dtype == torch.float64 else 1e-7
        damping = (damping * settings.damping_factors.index_select(0, chosen)).clamp_(lowest, 1e3)

    level = level._replace(passes_left=level.passes_left - 1, damping=damping)
    # the negation ends a level at NaN too
    ended = ~(marginal_error(problem, current.marginal) > level.tolerance) | (level.passes_left <= 0)
    if settings.adaptive and not ended.any():
        return _Progress(rows, problem, kernel, current, level, ended), None
    last = blur <= problem.epsilon
    falls, finished = ended & ~last, ended & last
    next_level = _BlurLevel.begin(problem, torch.maximum(blur / BLUR_FACTOR, problem.epsilon), settings)
    return _Progress(rows, problem, kernel, current, level.replaced(next_level, falls), falls), finished


@torch.no_grad()
def maximise(
    problem: Problem,
    *,
    newton: bool = True,
    adaptive: bool = True,
    tolerance: float = 1e-5,
    max_passes: int = 100,
    start: Tensor | None = None,
    graphs: GraphCache = GRAPHS,
) -> tuple[Tensor, Tensor]:
    """Potentials that maximise D, and the marginal error there; -> b m, b.

    Each problem anneals on its own: ε is divided by `BLUR_FACTOR` from level to level, and a level ends at a marginal
    error of `LEVEL_TOLERANCE` or after `MAX_LEVEL_PASSES` passes. Each pass takes the best of a Sinkhorn step and of
    several lengths of a Levenberg–Marquardt step. A large problem anneals on every k-th code; before the target blur
    the sample's masses are changed, and the last passes are over all codes. The maximum is the same.

    Args:
        newton: If false, passes take Sinkhorn steps alone.
        adaptive: If true, each problem stops within `tolerance`, but may get further passes while others go on. If
            false, the number of passes depends on `tolerance` alone (`PathSchedule`; `FIXED_PASSES` for Sinkhorn steps
            or with a start); nothing is read back from the device, and a GPU replays them as one graph.
        tolerance: L1 marginal error at which an adaptive schedule stops.
        max_passes: Passes at the target blur, at most; for an adaptive schedule.
        start: Potentials to start from, b m. Default: 0, with annealing.
        graphs: Where the CUDA graphs of fixed schedules are kept.
    """
    if not len(problem.b):
        return problem.b.clone(), problem.epsilon.clone()
    if adaptive or start is not None:
        return _maximise(problem, newton, adaptive, tolerance, max_passes, start)

    def maximise_fixed(problem: Problem) -> tuple[Tensor, Tensor]:
        if newton:
            return follow_path(problem, PathSchedule.of_tolerance(tolerance))
        return _maximise(problem, newton, False, tolerance, max_passes, None)

    return graphs.run(maximise_fixed, problem, newton, tolerance, max_passes)


def _maximise(
    problem: Problem, newton: bool, adaptive: bool, tolerance: float, max_passes: int, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as `maximise`; a large problem is solved on a sample first."""
    n, m = problem.cost.shape[2], problem.cost.shape[1]
    stride = n // max(MIN_SAMPLE, SAMPLE_PER_UNIT * m)
    settings = _PassSettings.of(newton, adaptive, tolerance, max_passes, problem.b)
    if start is not None or not (newton and adaptive) or stride <= 1:
        return _maximise_from(start, problem, settings)
    sample, blur = problem.subsample(stride), CORRECTION_BLUR * problem.epsilon
    loose = settings._replace(tolerance=max(tolerance, LEVEL_TOLERANCE))
    start, _ = _maximise_from(None, sample._replace(epsilon=blur), loose)
    sample = sample.with_gradient_of(problem, start, blur)
    near = settings._replace(tolerance=max(tolerance, SAMPLE_TOLERANCE))
    start, _ = _maximise_from(start, sample, near, CORRECTION_BLUR)
    return _maximise_from(start, problem, settings)


def _maximise_from(
    start: Tensor | None, problem: Problem, settings: _PassSettings, blur_factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same, from `start` at `blur_factor` times the target blur, or from 0; -> b m, b."""
    progress, workspace = _Progress.start(problem, start, blur_factor, settings), torch.empty_like(problem.cost)
    if not settings.adaptive:
        for _ in range(FIXED_PASSES):
            progress, _ = _after_pass(progress, settings, workspace)
        return progress.current.potentials, marginal_error(problem, progress.current.marginal)
    potentials, error = torch.empty_like(problem.b), torch.empty_like(problem.epsilon)
    large = problem.cost[0].numel() > LARGE_COST
    while True:
        progress, finished = _after_pass(progress, settings, workspace[: len(progress.rows)])
        if finished is None:
            continue
        count = int(finished.sum())
        # removing the finished problems copies the others; this pays if many are finished or the problems are large
        if count >= (1 if large else len(progress.rows) / 2):
            done = finished.nonzero()[:, 0]
            potentials[progress.rows[done]] = progress.current.potentials[done]
            error[progress.rows[done]] = marginal_error(progress.problem, progress.current.marginal)[done]
            if count == len(progress.rows):
                return potentials, error
            progress = progress.select((~finished).nonzero()[:, 0])
