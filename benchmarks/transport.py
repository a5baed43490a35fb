"""The transport solver beside what a user could pick instead: python benchmarks/transport.py --json OUT [--quick].

Every method gets the same codes (b n 256), projection (256 d) and texts, and gives a scalar and its gradient to all
three; the projection's own forward and backward is part of each. Methods take turns within a round; seconds are medians
over the rounds, ratios are taken within a round. One thread on a CPU. Entropic methods share one absolute blur, .02 of
the problems' mean scale; references are POT's exact plans in float64.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from problems import FAMILIES, Clouds, clouds
from rich.console import Console
from rich.table import Table
from rivals import METHODS, Method, fitting, ours, pot_emd2
from torch import Tensor

from tavq_plugin.align import solve

LEVELS = {"word": (4096, 64), "phrase": (1024, 32), "sentence": (256, 12)}
BATCH = 8
EPSILON = 0.02
SLOW = 2.0  # seconds


def leaves_of(problem: Clouds, device: str) -> list[Tensor]:
    """Copies that take gradients."""
    return [t.to(device, copy=True).requires_grad_() for t in problem]


def run(method: Method, leaves: list[Tensor], epsilon: float) -> tuple[float, Any, list[Tensor]]:
    """One forward and backward; seconds, the cost's reader and the gradients to codes, text and projection."""
    for leaf in leaves:
        leaf.grad = None
    device = leaves[0].device.type
    _wait(device)
    began = time.perf_counter()
    value, cost = method(*leaves, epsilon)
    value.sum().backward()
    _wait(device)
    seconds = time.perf_counter() - began
    return seconds, cost, [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]


def peak(method: Method, leaves: list[Tensor], epsilon: float) -> float:
    """Megabytes above what was held before, at the highest point of a forward and backward."""
    for leaf in leaves:
        leaf.grad = None
    if leaves[0].is_cuda:
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(method, leaves, epsilon)
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or a peak hides in it
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    run(method, leaves, epsilon)
    return (_status("VmHWM") - before) / 1e3


class Exact(NamedTuple):
    """POT's exact answer in float64."""

    cost: Tensor  # b
    gain: Tensor  # b
    grads: list[Tensor]
    epsilon: float  # EPSILON of the problems' mean scale


def exact(problem: Clouds) -> Exact:
    """The reference; the blur every entropic method gets is read here too."""
    leaves = [t.double().requires_grad_() for t in problem]
    result = solve(leaves[0], leaves[1], project=leaves[2], solver="emd")
    result.value.sum().backward()
    relative = solve(*(t.detach() for t in leaves[:2]), project=leaves[2].detach(), epsilon=EPSILON, max_passes=1)
    grads = [leaf.grad for leaf in leaves]
    return Exact(result.transport_cost, result.gain, grads, relative.epsilon.mean().item())


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """Of two gradients as one vector each."""
    return torch.cosine_similarity(ours.double().flatten().cpu(), theirs.flatten().cpu(), dim=0).item()


def compare(level: str, d: int, rounds: int, device: str, methods: dict[str, Method]) -> list[dict[str, Any]]:
    """One size: every method in turn, `rounds` times."""
    n, m = LEVELS[level]
    problem = clouds("clustered", BATCH, n, m, d)
    truth, leaves = exact(problem), leaves_of(problem, device)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    answers = {}
    slow: set[str] = set()
    for round_number in range(rounds + 1):  # the first warms up
        for name, method in methods.items():
            if name in slow and round_number > 1:  # one round of what takes seconds is enough
                continue
            took, cost, grads = run(method, leaves, truth.epsilon)
            if round_number:
                seconds[name].append(took)
                if took > SLOW:
                    slow.add(name)
                answers[name] = cost, grads
    rows = []
    for name in methods:
        ratios = [theirs / own for theirs, own in zip(seconds[name], seconds["ours"], strict=False)]
        cost, (codes, text, project) = answers[name]
        error = None
        if cost is not None:
            error = ((cost().detach().double().cpu() - truth.cost) / truth.gain).abs().mean().item()
        rows.append({
            "level": level, "n": n, "m": m, "b": BATCH, "d": d, "device": device, "method": name,
            "seconds": statistics.median(seconds[name]), "ratio_to_ours": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "peak_mb": peak(methods[name], leaves, truth.epsilon),
            "error_over_gain": error,
            "cos_codes": cosine(codes, truth.grads[0]) if cost else None,
            "cos_text": cosine(text, truth.grads[1]) if cost else None,
            "cos_project": cosine(project, truth.grads[2]) if cost else None,
        })  # fmt: skip
    return rows


def growth(sizes: list[int], device: str) -> dict[str, Any]:
    """Seconds against n, and the exponent of a straight line through the logarithms, from 1,024 on."""
    found: dict[str, dict[int, float]] = {"ours": {}, "POT emd2 loop": {}}
    for n in sizes:
        problem = clouds("clustered", 2, n, 64, 384)
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


def accuracy(batches: int) -> list[dict[str, Any]]:
    """`solve` at its defaults on every family and size: certificate and exact errors."""
    rows = []
    for family in FAMILIES:
        for level, (n, m) in LEVELS.items():
            parts: dict[str, list[Tensor]] = {"gap": [], "error": [], "marginal": []}
            cosines = []
            for seed in range(batches):
                problem = clouds(family, BATCH, n, m, 384, seed=seed)
                truth = exact(problem)
                leaves = [t.clone().requires_grad_() for t in problem]
                result = solve(leaves[0], leaves[1], project=leaves[2])
                result.value.sum().backward()
                parts["gap"].append(result.gap.double() / truth.gain)
                parts["error"].append((result.transport_cost.double() - truth.cost) / truth.gain)
                parts["marginal"].append(result.marginal_error.double())
                cosines.append([cosine(leaf.grad, t) for leaf, t in zip(leaves, truth.grads, strict=True)])
            gap, error, marginal = (torch.cat(part) for part in parts.values())
            least = torch.tensor(cosines).amin(0).tolist()
            rows.append({
                "family": family, "level": level, "problems": len(gap), "gap_over_gain": gap.max().item(),
                "error_over_gain": error.max().item(), "marginal_p95": marginal.quantile(0.95).item(),
                "marginal_worst": marginal.max().item(), "cos_codes": least[0], "cos_text": least[1],
                "cos_project": least[2],
            })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--quick", action="store_true", help="one width, fewer rounds: under three minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for d in (384,) if arguments.quick else (384, 512, 768):
            for level in LEVELS:
                cases += compare(level, d, 3 if arguments.quick else 7, device, fitting(device))
    result = {
        "protocol": {"machine": machine(), "threads": 1, "quick": arguments.quick, "epsilon": EPSILON,
                     "absent": sorted(set(METHODS) - set(fitting("cpu"))), "versions": versions(),
                     "text": __doc__},
        "cases": cases,
        "growth": growth([256, 1024, 4096, 16384] if arguments.quick else [256, 1024, 4096, 16384, 65536], "cpu"),
        "accuracy": accuracy(1 if arguments.quick else 4),
    }  # fmt: skip
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    page = markdown(result)
    arguments.json.with_suffix(".md").write_text(page)
    console = Console(width=140)
    for table in tables(result):
        console.print(table)


CASE = ("level", "n", "m", "d", "device", "method", "seconds", "ratio_to_ours", "range", "peak_mb", "error_over_gain",
        "cos_codes", "cos_text", "cos_project")  # fmt: skip
ACCURACY = ("family", "level", "problems", "gap_over_gain", "error_over_gain", "marginal_p95", "marginal_worst",
            "cos_codes", "cos_text", "cos_project")  # fmt: skip


def rows_of(result: dict[str, Any]) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """The three tables: title, head, cells."""
    cases = [case | {"range": "–".join(f"{r:.3g}" for r in case["ratio_range"])} for case in result["cases"]]
    seconds = result["growth"]["seconds"]
    sizes = sorted(seconds["ours"])
    curve = [[name, *(_cell(times.get(n)) for n in sizes), _cell(result["growth"]["exponent"][name])]
             for name, times in seconds.items()]  # fmt: skip
    return [
        ("forward and backward with the projection, b = 8, clustered codes", CASE,
         [[_cell(case[key]) for key in CASE] for case in cases]),
        ("seconds against n (b = 2, m = 64, d = 384)", ("method", *map(str, sizes), "exponent"), curve),
        ("solve at its defaults, worst of the problems", ACCURACY,
         [[_cell(row[key]) for key in ACCURACY] for row in result["accuracy"]]),
    ]  # fmt: skip


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return "–" if value is None else str(value)


def tables(result: dict[str, Any]) -> list[Table]:
    """For the terminal."""
    made = []
    for title, head, rows in rows_of(result):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        made.append(table)
    return made


def markdown(result: dict[str, Any]) -> str:
    """For the folder of results."""
    protocol = result["protocol"]
    lines = [
        f"# Transport\n\n{protocol['machine']}, one thread; {protocol['versions']}.\n\n{protocol['text'].strip()}\n"
    ]
    for title, head, rows in rows_of(result):
        lines += [f"\n## {title}\n", markdown_table(head, rows)]
    return "\n".join(lines)


def markdown_table(head: tuple[str, ...], rows: list[list[Any]]) -> str:
    """A head and cells of any kind."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _status(key: str) -> int:
    """A line of /proc/self/status, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def machine() -> str:
    """The processor's name, and the GPU's where there is one."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{gpu}"


def versions() -> dict[str, str]:
    """Of what was compared."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "POT", "geomloss", "ott-jax", "flash-sinkhorn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


if __name__ == "__main__":
    main()
