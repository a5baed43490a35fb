"""What the passes of a fixed schedule buy: python benchmarks/schedule.py --json OUT.

Problems are of four families and four sizes, 4 × `--seeds` of each. For every schedule, the gradients for codes
and texts at its plan (each image's, without the part that all of its points share) are compared by their cosine with
those of an adaptive solve in float64 at a tolerance of 1e-7. No time is taken, so other work on the machine does not
matter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common.machine import machine, versions
from common.result_files import markdown_table, save_results
from common.transport_problems import FAMILIES, transport_problem
from torch import Tensor

from tavq_plugin.ot import Transport, solve
from tavq_plugin.ot.path_following import FINE, PathSchedule, follow_path
from tavq_plugin.ot.semidual import Problem, conditional_plan

SIZES = ((1024, 64), (1024, 32), (256, 12), (64, 12))
SCHEDULES = (*(PathSchedule(blurs, 0, 1e-6) for blurs in (6, 8, 9, 10, 11, 12, 14)), FINE)
LEAST = 0.999


def gradients(x: Tensor, y: Tensor, **options: Any) -> tuple[Transport, list[Tensor]]:
    """The transport, and the gradients of codes and texts without their means over the points."""
    leaves = [part.detach().clone().requires_grad_() for part in (x, y)]
    result = solve(*leaves, **options)
    found = torch.autograd.grad(result.value.sum(), leaves)
    return result, [(part - part.mean(1, keepdim=True)).double().flatten(1) for part in found]


def plan_of(schedule: PathSchedule, exact: Transport) -> tuple[Tensor, Tensor]:
    """The float32 plan that a schedule finds, b m n, and its marginal error, b."""
    scale = exact.reduced.square().mean((1, 2)).sqrt()
    a, b = (masses.float() for masses in (exact.a, exact.b))
    cost = (exact.reduced / scale[:, None, None]).float()
    problem = Problem.of(cost, a, b, b > 0, (exact.epsilon / scale).float())
    potentials, error = follow_path(problem, schedule)
    return conditional_plan(problem, potentials, problem.epsilon)[0] * a[:, None], error


def gradients_of(plan: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    """Of ⟨P, |x − y|²⟩ with the plan held, for codes and texts, without their means over the points."""
    to_x = 2 * (x * plan.sum(1)[..., None] - plan.mT @ y)
    to_y = 2 * (y * plan.sum(2)[..., None] - plan @ x)
    return [(part - part.mean(1, keepdim=True)).flatten(1) for part in (to_x, to_y)]


def main(argv: Sequence[str] | None = None, *, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=0.02)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cosines: dict[PathSchedule, list[Tensor]] = {schedule: [] for schedule in SCHEDULES}
    errors: dict[PathSchedule, list[Tensor]] = {schedule: [] for schedule in SCHEDULES}
    for family in FAMILIES:
        for n, m in sizes:
            for seed in range(arguments.seeds):
                problem = transport_problem(family, 4, n, m, 384, seed=seed)
                x, y = problem.codes @ problem.project, problem.text
                options = {"epsilon": arguments.epsilon}
                reference, exact = gradients(x.double(), y.double(), tolerance=1e-7, max_passes=300, **options)
                for schedule in SCHEDULES:
                    plan, error = plan_of(schedule, reference)
                    own = gradients_of(plan.double(), x.double(), y.double())
                    pairs = [torch.cosine_similarity(*pair, dim=1) for pair in zip(own, exact, strict=True)]
                    cosines[schedule].append(torch.stack(pairs).amin(0))
                    errors[schedule].append(error)
    rows = []
    for schedule in SCHEDULES:
        cosine, error = torch.cat(cosines[schedule]), torch.cat(errors[schedule])
        rows.append({
            "blurs": schedule.blurs, "polish": schedule.polish, "damping": schedule.damping,
            "passes": 1 + schedule.blurs + schedule.polish, "problems": len(cosine),
            "least_cosine": cosine.min().item(), "share_below_least": (cosine < LEAST).double().mean().item(),
            "marginal_error_median": error.median().item(), "marginal_error_worst": error.max().item(),
        })  # fmt: skip
    result = {
        "protocol": {"machine": machine(), "threads": 1, "epsilon": arguments.epsilon, "versions": versions(),
                     "text": __doc__},
        "schedules": rows,
    }  # fmt: skip
    page = f"# Passes of the fixed schedule\n\n{machine()}; epsilon {arguments.epsilon:g}.\n\n{__doc__.strip()}\n\n"
    page += markdown_table(tuple(rows[0]), [list(row.values()) for row in rows])
    save_results(arguments.json, result, page)
    print(page)


if __name__ == "__main__":
    main()
