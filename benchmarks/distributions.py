"""Bias, variance and cost of each model of the codes: python benchmarks/distributions.py --json OUT.

The reference is POT's exact gradient on all codes in float64. Each model draws its points anew `draws` times. Its bias
is shown by the cosine of the mean gradient with the reference, and what a training step gets by the mean cosine of a
single gradient. Its variance is the spread of the value over the draws, as a share of the gain. Seconds are medians of
the process's CPU time on one thread, for forward and backward with the projection (256 → 384); models take turns.
Gaussian models have no learned head here: "moments" is what the head starts from.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common.machine import machine, versions
from common.result_files import markdown_table, save_results
from common.transport_problems import TransportProblem, cosine, exact, transport_problem
from einops import rearrange
from torch import Tensor

from tavq_plugin.losses import CodeDistribution, coarse
from tavq_plugin.ot import Transport, solve

Model = Callable[[Tensor, Tensor, Tensor], Transport]


def models(side: int) -> dict[str, Model]:
    """Every model, by name and number of samples."""

    def measured(kind: str, samples: int) -> Model:
        distribution = CodeDistribution(kind, width=256, samples=samples)

        def model(x: Tensor, y: Tensor, w: Tensor) -> Transport:
            return solve(distribution(rearrange(x, "b (h w) c -> b c h w", h=side)), y, project=w)

        return model

    def by_sample(samples: int, passes: int) -> Model:
        return lambda x, y, w: coarse(x, y, project=w, grid=(side, side), samples=samples, passes=passes)

    made = {"all": measured("all", 1)}
    for kind in ("moments", "moments-full", "subsample"):
        for samples in (64, 256, 1024):
            made[f"{kind}, {samples}"] = measured(kind, samples)
    for passes in (1, 2, 4):
        made[f"coarse, 256, {passes} passes"] = by_sample(256, passes)
    return made


def run(model: Model, problem: TransportProblem) -> tuple[float, Tensor, list[Tensor]]:
    """Seconds, values b, gradients to codes, text and projection."""
    leaves = [t.clone().requires_grad_() for t in problem]
    began = time.process_time()
    value = model(*leaves).value
    value.sum().backward()
    return time.process_time() - began, value.detach(), [leaf.grad for leaf in leaves]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--draws", type=int, default=12, help="samples drawn of each model")
    parser.add_argument("--side", type=int, default=64, help="of the grid of codes")
    parser.add_argument("--units", type=int, default=64, help="text units per image")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--family", default="spatial", help="of the problems: gaussian, spatial, clustered, repeated")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n = arguments.side**2
    problem = transport_problem(arguments.family, arguments.batch, n, arguments.units, 384)
    truth, kinds = exact(problem), models(arguments.side)
    found: dict[str, list[Any]] = {name: [] for name in kinds}
    for number in range(arguments.draws + 1):  # the first warms up
        for name, model in kinds.items():
            answer = run(model, problem)
            if number:
                found[name].append(answer)
    rows: list[dict[str, Any]] = []
    reference = found["all"][0][1].double()  # the model without randomness
    for name, answers in found.items():
        values = torch.stack([value for _, value, _ in answers]).double()
        row: dict[str, Any] = {
            "model": name,
            "seconds": statistics.median(seconds for seconds, _, _ in answers),
            "value_bias_over_gain": ((values.mean(0) - reference) / truth.gain).mean().item(),
            "value_spread_over_gain": (values.std(0) / truth.gain).mean().item(),
        }
        for place, part in enumerate(("codes", "text", "project")):
            grads = [gradients[place] for _, _, gradients in answers]
            row[f"cos_{part}_mean"] = cosine(torch.stack(grads).mean(0), truth.grads[place])
            row[f"cos_{part}_one"] = statistics.mean(cosine(grad, truth.grads[place]) for grad in grads)
        rows.append(row)
    result = {
        "protocol": {"machine": machine(), "threads": 1, "family": arguments.family, "draws": arguments.draws,
                     "b": arguments.batch, "n": n, "m": arguments.units, "versions": versions(), "text": __doc__},
        "models": rows,
    }  # fmt: skip
    page = f"# Models of the codes\n\n{machine()}, one thread, {arguments.family} codes.\n\n{__doc__.strip()}\n\n"
    page += markdown_table(tuple(rows[0]), [list(row.values()) for row in rows])
    save_results(arguments.json, result, page)
    print(page)


if __name__ == "__main__":
    main()
