"""Every host through the conformance suite, and what wrapping costs: python benchmarks/hosts.py --json [OUT].

One row per host: its taps and levels, and "passes" or the reason why not. Installed packages are tested, and checkouts
under TAVQ_HOSTS (`owner+name` folders). Then, unless --no-speed: the time of a taming f16 256 px forward, bare and with
hooks, in turns; and the memory that levels 1–2 add (b = 8, 64² and 32², K = 16,384), forward and backward.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from common.machine import machine, process_kilobytes, reset_peak_memory, versions
from common.result_files import markdown_table
from rich.console import Console
from rich.table import Table
from torch import Tensor

import tavq_plugin as tavq
from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.hooks import tapped
from tavq_plugin.types import Quantized

TESTS = Path(__file__).parents[1] / "tests"
PACKAGES = (
    "torch", "taming-transformers-rom1504", "diffusers", "vector-quantize-pytorch", "transformers", "monai",
    "muse-maskgit-pytorch", "pythae", "timm",
)  # fmt: skip
HEAD = ("host", "taps", "levels", "tests", "result")


class Outcomes:
    """A pytest plug-in that collects the outcome of each host's tests."""

    def __init__(self) -> None:
        self.passed: dict[str, int] = {}
        self.trouble: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a pass; keep the first reason of a skip or a failure."""
        host = report.nodeid.rpartition("[")[2].rstrip("]").removesuffix("-train").removesuffix("-eval")
        self.passed.setdefault(host, 0)
        if report.skipped:
            self.trouble.setdefault(host, str(report.longrepr[2]))
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            name = report.nodeid.split("::")[-1]
            self.trouble.setdefault(host, f"fails {name}: {str(getattr(crash, 'message', ''))[:200]}")
        elif report.when == "call":
            self.passed[host] += 1


Builders = Mapping[str, Callable[[str], Any]]  # of each host, by name, a function that builds it for a test


def all_hosts() -> Builders:
    """Every host of the conformance suite."""
    sys.path.insert(0, str(TESTS))
    from helpers import checkouts, checkouts_by_parse, tiny_hosts

    whole = {"unitok-whole": lambda _: checkouts_by_parse.whole_unitok()}  # one slow test, not the suite
    tiny = dict.fromkeys(tiny_hosts.HOSTS, tiny_hosts.build)
    return tiny | dict.fromkeys(checkouts.CHECKOUTS, checkouts.build) | whole


def conformance(only: str | None, hosts: Builders, run_tests: Callable[..., Any]) -> list[dict[str, Any]]:
    """One row per host."""
    outcomes = Outcomes()
    files = [str(TESTS / "hosts" / name) for name in ("test_packages.py", "test_checkouts.py")]
    chosen = ["-k", only] if only else []
    with contextlib.redirect_stdout(io.StringIO()):
        run_tests(
            [*files, "-q", "-n0", "-m", "slow or not slow", "-p", "no:cacheprovider", "-W", "ignore", *chosen],
            plugins=[outcomes],
        )
    rows = []
    for name, build in hosts.items():
        if only and name not in outcomes.passed:
            continue
        row: dict[str, Any] = {"host": name, "taps": [], "levels": [], "tests": outcomes.passed.get(name, 0)}
        try:
            case = build(name)
            with torch.no_grad():
                tokenizer = tavq.wrap(case.model, **case.settings)
                codes = tokenizer.encode(case.images)
            row["taps"] = [*tokenizer.adapter.taps, tokenizer.adapter.quantizer]
            row["levels"] = ["×".join(map(str, level.indices.shape[1:])) for level in codes.levels]
            row["result"] = outcomes.trouble.get(name, "passes" if row["tests"] else "not tested")
        except pytest.skip.Exception as reason:
            row["result"] = f"absent: {reason}"
        except Exception as error:
            row["result"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows


def overhead(rounds: int) -> dict[str, Any]:
    """CPU seconds of a taming f16 256 px training forward, b = 1, bare and with hooks, in turns."""
    from step_share import F16
    from tavq_plugin.adapters.taming import VQGAN

    torch.manual_seed(0)
    host = VQGAN(F16, n_embed=1024, embed_dim=256)
    images = torch.rand(1, 3, 256, 256)
    seconds: dict[str, list[float]] = {"bare": [], "hooked": []}
    ratios = []
    for _ in range(rounds):
        for kind in seconds:
            optimizer = torch.optim.SGD(host.parameters(), lr=0.0)
            if kind == "hooked":
                tavq.attach(host, optimizer, text_dim=384)
            start = time.process_time()
            host(images)
            seconds[kind].append(time.process_time() - start)
            tavq.detach(host)
        ratios.append(seconds["hooked"][-1] / seconds["bare"][-1])
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    spread = [min(ratios), max(ratios)]
    alone = hooks()
    return {
        "rounds": rounds, "seconds": medians, "ratio": statistics.median(ratios), "ratio_min_max": spread,
        "three_hooks_seconds": alone, "three_hooks_share": alone / medians["bare"],
    }  # fmt: skip


def hooks(calls: int = 20000) -> float:
    """CPU seconds that three hooks add to small modules; in a host's forward, their time is below the spread."""
    modules, x = [torch.nn.Identity() for _ in range(3)], torch.zeros(1)
    model = torch.nn.Sequential(*modules)

    def seconds() -> float:
        start = time.process_time()
        for _ in range(calls):
            model(x)
        return (time.process_time() - start) / calls

    bare = seconds()
    with tapped(model, at=["0", "1", "2"]):
        return seconds() - bare


def memory() -> dict[str, float]:
    """Megabytes of levels 1–2 at their highest, forward and backward, above the host's own tensors."""
    b, k, c = 8, 16384, 256
    codebook = torch.nn.Parameter(torch.randn(k, c))
    codebook.grad = torch.zeros_like(codebook)  # the host's own loss makes it anyway
    features = [torch.randn(b, 256, side, side, requires_grad=True) for side in (64, 32)]
    for feature in features:
        feature.grad = torch.zeros_like(feature)
    z = torch.randn(b, c, 16, 16, requires_grad=True)
    hierarchy = Hierarchy([256, 256], c)

    def run() -> Tensor:
        indices = torch.zeros(b, 16, 16, dtype=torch.int64)
        codes = hierarchy(features, z, Quantized(z, indices, z.new_zeros(())), codebook)
        codes.loss.backward()
        return codes.loss

    before = reset_peak_memory()
    run()
    full = k * b * 64 * 64 * 4 / 1e6
    return {"peak_mb": (process_kilobytes("VmHWM") - before) / 1e3, "unchunked_distances_mb": full}


def markdown(content: dict[str, Any]) -> str:
    """The whole result, readable."""
    rows = [_cells(row) for row in content["hosts"]]
    parts = [f"{content['machine']}; {content['versions']}", markdown_table(HEAD, rows)]
    if "overhead" in content:
        cost, held = content["overhead"], content["memory"]
        parts.append(
            f"Hooks on a taming f16 256 px training forward, b = 1, one thread: {cost['seconds']['hooked']:.3f} s "
            f"of CPU against {cost['seconds']['bare']:.3f} s bare, median ratio {cost['ratio']:.4f} "
            f"({cost['ratio_min_max'][0]:.4f}–{cost['ratio_min_max'][1]:.4f}, {cost['rounds']} rounds). Three "
            f"hooks by themselves: {cost['three_hooks_seconds'] * 1e6:.0f} µs, {cost['three_hooks_share']:.1e} of it."
        )
        parts.append(
            f"Levels 1–2 at b = 8, K = 16,384, width 256, 64² and 32², forward and backward: {held['peak_mb']:.0f} MB "
            f"at most; the distances of 64² alone, unchunked, would be {held['unchunked_distances_mb']:.0f} MB."
        )
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [", ".join(row[key]) if isinstance(row[key], list) else str(row[key]) for key in HEAD]


def main(
    argv: Sequence[str] | None = None, *, hosts: Builders | None = None, run_tests: Callable[..., Any] = pytest.main
) -> None:
    """Run, print and write; tests give `hosts` and `run_tests`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"), help="where the JSON goes; alone: printed")
    parser.add_argument("--only", help="hosts whose name has this, as pytest -k")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-speed", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the checkouts, which are old
    content: dict[str, Any] = {"machine": machine(), "versions": versions(PACKAGES)}
    with contextlib.redirect_stdout(sys.stderr):  # hosts print
        content["hosts"] = conformance(arguments.only, all_hosts() if hosts is None else hosts, run_tests)
        if not arguments.no_speed:
            content |= {"overhead": overhead(arguments.rounds), "memory": memory()}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if arguments.json == Path("-"):
        print(text)
    else:
        table = Table(*HEAD)
        for row in content["hosts"]:
            table.add_row(*_cells(row))
        Console().print(table)
        print(markdown({**content, "hosts": []}).split("\n\n", 2)[-1])
    if arguments.json not in (None, Path("-")):
        arguments.json.write_text(text + "\n", encoding="utf-8")
        arguments.json.with_suffix(".md").write_text(markdown(content), encoding="utf-8")


if __name__ == "__main__":
    main()
