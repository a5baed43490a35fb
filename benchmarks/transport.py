"""The transport solver compared with its alternatives: python benchmarks/transport.py --json OUT [--quick].

Every method gets the same codes (b n 256), projection (256 d) and texts, and computes a scalar and its gradient for all
three; the projection's own forward and backward is part of each. Methods take turns within a round; seconds are medians
over the rounds, and ratios are taken within a round. A method that takes more than two seconds runs once after its
warm-up (ot.batch without one, as it would not matter), and its ratio is to our median. On a CPU there is one thread,
and seconds are the process's CPU time, so that other processes do not count; on a GPU they are wall-clock seconds.
Entropic methods share one absolute blur, .02 of the problems' mean scale; references are POT's exact plans in float64.
Equal codes may share their units in any proportion at the same cost, so gradients of "repeated" codes are averaged over
equal codes before they are compared.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common.machine import machine, process_kilobytes, reset_peak_memory, versions
from common.result_files import save_results
from common.transport_problems import EPSILON, FAMILIES, TransportProblem, cosine, exact, transport_problem
from rich.console import Console
from torch import Tensor
from transport_methods import METHODS, ONCE, Method, fitting, ours, pot_emd2
from transport_tables import markdown, tables

from tavq_plugin.ot import solve

LEVELS = {"word": (4096, 64), "phrase": (1024, 32), "sentence": (256, 12)}
BATCH = 8
GROWTH_SIZES = (256, 1024, 4096, 16384, 65536)  # codes; the last one not with --quick
BLURS = (EPSILON, 0.01, 0.005)
SLOW = 2.0  # seconds


def leaves_of(problem: TransportProblem, device: str) -> list[Tensor]:
    """Copies on a device that require gradients."""
    return [t.to(device, copy=True).requires_grad_() for t in problem]


def run(method: Method, leaves: list[Tensor], epsilon: float) -> tuple[float, Any, list[Tensor]]:
    """One forward and backward: seconds, a reader of the cost, and the gradients of codes, text and projection."""
    for leaf in leaves:
        leaf.grad = None
    device = leaves[0].device.type
    clock = time.perf_counter if device == "cuda" else time.process_time
    _wait(device)
    began = clock()
    value, cost = method(*leaves, epsilon)
    value.sum().backward()
    _wait(device)
    seconds = clock() - began
    return seconds, cost, [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]


def peak(method: Method, leaves: list[Tensor], epsilon: float) -> tuple[float, tuple[float, Any, list[Tensor]]]:
    """Megabytes at the peak of a `run` above those held before it, and the result of the run."""
    for leaf in leaves:
        leaf.grad = None
    if leaves[0].is_cuda:
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        answer = run(method, leaves, epsilon)
        return (torch.cuda.max_memory_allocated() - held) / 1e6, answer
    before = reset_peak_memory()
    answer = run(method, leaves, epsilon)
    return (process_kilobytes("VmHWM") - before) / 1e3, answer


def compare(
    level: str, size: tuple[int, int], d: int, rounds: int, device: str, methods: dict[str, Method]
) -> list[dict[str, Any]]:
    """One row per method at one size (n, m): every method in turn, `rounds` times."""
    n, m = size
    problem = transport_problem("clustered", BATCH, n, m, d)
    truth, leaves = exact(problem), leaves_of(problem, device)
    seconds: dict[str, list[float]] = {name: [] for name in methods if name not in ONCE}
    for round_number in range(rounds + 1):  # the first warms up
        for name, method in methods.items():
            if name in seconds:
                took, _, _ = run(method, leaves, truth.epsilon)
                if round_number:
                    seconds[name].append(took)
                elif took > SLOW:
                    del seconds[name]
    own = statistics.median(seconds["ours"])
    rows = []
    for name in methods:
        megabytes, (took, cost, (codes, text, project)) = peak(methods[name], leaves, truth.epsilon)
        times = seconds.get(name, [took])
        ratios = [one / other for one, other in zip(times, seconds["ours"] if name in seconds else [own], strict=True)]
        error = None
        if cost is not None:
            error = ((cost().detach().double().cpu() - truth.cost) / truth.gain).abs().mean().item()
        rows.append({
            "level": level, "n": n, "m": m, "b": BATCH, "d": d, "device": device, "method": name,
            "seconds": statistics.median(times), "ratio_to_ours": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "peak_mb": megabytes,
            "error_over_gain": error,
            "cos_codes": cosine(codes, truth.grads[0]) if cost else None,
            "cos_text": cosine(text, truth.grads[1]) if cost else None,
            "cos_project": cosine(project, truth.grads[2]) if cost else None,
        })  # fmt: skip
    return rows


def growth(sizes: Sequence[int], device: str) -> dict[str, Any]:
    """Seconds for each n, and the slope of a line through their logarithms from n = 1,024 on."""
    found: dict[str, dict[int, float]] = {"ours": {}, "POT emd2 loop": {}}
    for n in sizes:
        problem = transport_problem("clustered", 2, n, 64, 384)
        epsilon = solve(*problem[:2], project=problem.project, max_passes=1).epsilon.mean().item()
        leaves = leaves_of(problem, device)
        for name, method in (("ours", ours), ("POT emd2 loop", pot_emd2)):
            if name == "ours" or n <= 16384:
                found[name][n] = min(run(method, leaves, epsilon)[0] for _ in range(3 if n <= 16384 else 2))
    exponents = {}
    for name, times in found.items():
        large = torch.tensor([[n, s] for n, s in times.items() if n >= 1024], dtype=torch.float64).log()
        central = large - large.mean(0)
        exponents[name] = ((central[:, 0] * central[:, 1]).sum() / central[:, 0].square().sum()).item()
    return {"b": 2, "m": 64, "d": 384, "seconds": found, "exponent": exponents}


def accuracy(batches: int, levels: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Certificates and exact errors of `solve` on every family and size, at its default blur and smaller ones."""
    rows = []
    for family, (level, (n, m)) in itertools.product(FAMILIES, levels.items()):
        problems = [transport_problem(family, BATCH, n, m, 384, seed=seed) for seed in range(batches)]
        truths = [exact(problem) for problem in problems]
        for epsilon in BLURS:
            parts: dict[str, list[Tensor]] = {"gap": [], "error": [], "marginal": []}
            cosines = []
            for problem, truth in zip(problems, truths, strict=True):
                leaves = leaves_of(problem, "cpu")
                result = solve(leaves[0], leaves[1], project=leaves[2], epsilon=epsilon)
                result.value.sum().backward()
                parts["gap"].append(result.gap.double() / truth.gain)
                parts["error"].append((result.transport_cost.double() - truth.cost) / truth.gain)
                parts["marginal"].append(result.marginal_error.double())
                pairs = [(leaf.grad, grad) for leaf, grad in zip(leaves, truth.grads, strict=True)]
                if family == "repeated":
                    pairs[0] = tuple(mean_of_equal(problem.codes, grad) for grad in pairs[0])
                cosines.append([cosine(*pair) for pair in pairs])
            gap, error, marginal = (torch.cat(part) for part in parts.values())
            least = torch.tensor(cosines).amin(0).tolist()
            rows.append({
                "family": family, "level": level, "epsilon": epsilon, "problems": len(gap),
                "gap_over_gain": gap.max().item(), "error_over_gain": error.max().item(),
                "marginal_p95": marginal.quantile(0.95).item(), "marginal_worst": marginal.max().item(),
                "cos_codes": least[0], "cos_text": least[1], "cos_project": least[2],
            })  # fmt: skip
    return rows


def mean_of_equal(codes: Tensor, grads: Tensor) -> Tensor:
    """Each code's gradient, averaged over the equal codes of its image; b n c, b n c -> b n c."""
    means = []
    for points, grad in zip(codes, grads.double(), strict=True):
        _, group, count = points.unique(dim=0, return_inverse=True, return_counts=True)
        means.append((grad.new_zeros(len(count), grad.shape[1]).index_add(0, group, grad) / count[:, None])[group])
    return torch.stack(means)


def main(
    argv: Sequence[str] | None = None,
    *,
    levels: Mapping[str, tuple[int, int]] = LEVELS,
    growth_sizes: Sequence[int] = GROWTH_SIZES,
    devices: Sequence[str] | None = None,
) -> None:
    """Measure, print and write the results; tests give the sizes and devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--quick", action="store_true", help="one width, fewer rounds: under three minutes")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "protocol": {"machine": machine(), "threads": 1, "quick": arguments.quick, "epsilon": EPSILON,
                     "absent": sorted(set(METHODS) - set(fitting("cpu"))), "versions": versions(),
                     "text": __doc__},
        "cases": [], "growth": {"seconds": {}, "exponent": {}}, "accuracy": [],
    }  # fmt: skip
    devices = devices or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    sizes = growth_sizes[:-1] if arguments.quick else growth_sizes

    def keep() -> None:
        """Called after every part, so that an interrupted run keeps what it measured."""
        save_results(arguments.json, result, markdown(result))

    for device in devices:
        for d in (384,) if arguments.quick else (384, 512, 768):
            for level, size in levels.items():
                result["cases"] += compare(level, size, d, 3 if arguments.quick else 5, device, fitting(device))
                keep()
            if not result["accuracy"]:
                result["growth"] = growth(sizes, "cpu")
                keep()
                result["accuracy"] = accuracy(1 if arguments.quick else 2, levels)
                keep()
    console = Console(width=140)
    for table in tables(result):
        console.print(table)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
