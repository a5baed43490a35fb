"""diffusers' own tests of its VQModel, bare and with an attachment on each model: python benchmarks/diffusers_suite.py.

TAVQ_HOSTS names a folder with the checkout `huggingface+diffusers`, whose tests run against the installed diffusers,
offline, in two processes. A model is attached at its first forward and detached after each test. The exit code is 1 if
an outcome differs, or if no model was attached. What fails in both runs (tests that download, for one) is counted, with
its reason, as skips are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from common.machine import machine, versions
from common.result_files import markdown_table
from torch import nn

import tavq_plugin as tavq

SUITE = "tests/models/autoencoders/test_models_vq.py"
PACKAGES = ("torch", "diffusers")
KINDS = ("bare", "attached")
RUNS = ("bare", "with attachments")


class Outcomes:
    """A pytest plug-in that keeps the outcome of each test, and why it did not pass."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the worst outcome of a test's three phases."""
        if report.when == "call" or not report.passed:
            self.found[report.nodeid] = report.outcome
        if report.skipped:
            self.reasons[report.nodeid] = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.failed:
            chain = getattr(report.longrepr, "chain", None)  # of errors that caused each other, the first one first
            crash = chain[0][1] if chain else getattr(report.longrepr, "reprcrash", None)
            self.reasons[report.nodeid] = str(getattr(crash, "message", report.longrepr)).splitlines()[0][:200]


class AttachedModels:
    """A pytest plug-in that attaches each model of a class at its first forward, and detaches it after the test."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls, self.models, self.seen = cls, [], set()
        self.attached, self.refused = 0, Counter()
        self.handle = nn.modules.module.register_module_forward_pre_hook(self._attach)

    def _attach(self, model: nn.Module, args: Any) -> None:
        if not isinstance(model, self.cls) or id(model) in self.seen:
            return
        self.seen.add(id(model))  # at once, as attach runs the model too
        self.models.append(model)  # held, so that the id stays its own
        blocks = len(model.encoder.down_blocks)
        taps = {"taps": ("encoder.conv_in", "encoder.down_blocks.0.resnets.0")} if blocks < 3 else {}
        try:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            tavq.attach(model, optimizer, text_dim=8, log_summary=False, **taps)
            self.attached += 1
        except Exception as error:  # a model on another device, or in half precision: said in the result
            self.refused[f"{type(error).__name__}: {str(error)[:150]}"] += 1

    def pytest_runtest_teardown(self) -> None:
        """Take the attachments off."""
        for model in self.models:
            tavq.detach(model)
        self.models.clear()
        self.seen.clear()


def run_suite(kind: str, suite: str) -> dict[str, Any]:
    """The outcome of each test in this process, whose folder is the checkout."""
    from diffusers import VQModel  # before the checkout's own is found

    outcomes = Outcomes()
    attached = AttachedModels(VQModel) if kind == "attached" else None
    plugins = [outcomes, *([attached] if attached else [])]
    pytest.main([suite, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"], plugins=plugins)
    counts = {"attached": attached.attached, "refused": dict(attached.refused)} if attached else {}
    return {"outcomes": outcomes.found, "reasons": outcomes.reasons, **counts}


def run_apart(kind: str, suite: str, checkout: Path) -> dict[str, Any]:
    """`run_suite` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--kind", kind, "--suite", suite, "--json", str(out)]
        done = subprocess.run(
            command, cwd=checkout, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )
        if not out.exists():
            raise RuntimeError(
                f"the {kind} run ended with code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
            )
        return json.loads(out.read_text(encoding="utf-8"))


def compared(bare: dict[str, Any], attached: dict[str, Any]) -> dict[str, Any]:
    """Counts of the outcomes of both runs, why tests did not pass, and the tests whose outcome differs."""
    before, after = bare["outcomes"], attached["outcomes"]
    names = sorted(before.keys() | after.keys())
    return {
        "bare": dict(Counter(before.values())),
        "with attachments": dict(Counter(after.values())),
        "why skipped": _why("skipped", attached),
        "why failed": _why("failed", attached),
        "models attached": attached["attached"],
        "models refused": attached["refused"],
        "differs": {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)},
    }


def _why(outcome: str, run: dict[str, Any]) -> dict[str, int]:
    """How many tests of a run have this outcome for each reason, most first."""
    reasons = run.get("reasons", {})
    names = (name for name, found in run["outcomes"].items() if found == outcome)
    return dict(Counter(reasons.get(name, "no reason given") for name in names).most_common())


def markdown(content: dict[str, Any]) -> str:
    """The result, readable."""
    rows = [[run, *(content[run].get(kind, 0) for kind in ("passed", "skipped", "failed"))] for run in RUNS]
    reasons = [
        [outcome, count, reason]
        for outcome in ("skipped", "failed")
        for reason, count in content[f"why {outcome}"].items()
    ]
    refused = sum(content["models refused"].values())
    return (
        "\n\n".join(
            [
                "diffusers' own tests of its VQModel, bare and with an attachment on each model, in one run of "
                f"`python benchmarks/diffusers_suite.py`, offline. Tests of the checkout: {content['tests']}.",
                f"{content['machine']}; {content['versions']}",
                markdown_table(("run", "passed", "skipped", "failed"), rows).rstrip(),
                f"Models attached: {content['models attached']}; refused: {refused}; tests whose outcome differs: "
                f"{len(content['differs'])}.",
                "Why tests did not pass, with attachments:",
                markdown_table(("outcome", "tests", "reason"), reasons).rstrip(),
            ]
        )
        + "\n"
    )


def commit_of(checkout: Path) -> str:
    """The version that a checkout of diffusers says it is, and its commit; "unknown" if it has none."""
    source = checkout / "src" / "diffusers" / "__init__.py"
    found = re.search(r'__version__ = "(.+)"', source.read_text(encoding="utf-8")) if source.is_file() else None
    own = (checkout / ".git").exists()  # not that of a repository around it
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() if own else ""
    return f"{found.group(1) if found else 'unknown'}, commit {commit or 'unknown'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run both, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the result goes too")
    parser.add_argument("--suite", default=SUITE, help="a test file or node of the checkout")
    parser.add_argument("--kind", choices=KINDS, help="one run, in this process and folder")
    arguments = parser.parse_args(argv)
    if arguments.kind:
        content = run_suite(arguments.kind, arguments.suite)
    else:
        hosts = os.environ.get("TAVQ_HOSTS")
        checkout = Path(hosts or "") / "huggingface+diffusers"
        if not hosts or not (checkout / SUITE).is_file():
            parser.error(f"no {checkout / SUITE}: let TAVQ_HOSTS name a folder with the checkout huggingface+diffusers")
        runs = [run_apart(kind, arguments.suite, checkout.resolve()) for kind in KINDS]
        content = {
            "machine": machine(),
            "versions": versions(PACKAGES),
            "tests": commit_of(checkout),
            **compared(*runs),
        }
        print(json.dumps(content, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if not arguments.kind:
            arguments.json.with_suffix(".md").write_text(markdown(content), encoding="utf-8")
    return int(not arguments.kind and bool(content["differs"] or not content["models attached"]))


if __name__ == "__main__":
    sys.exit(main())
