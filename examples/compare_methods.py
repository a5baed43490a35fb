"""Compare two methods on drawn scenes, then measure a tokenizer of your own beside them; runs offline on a CPU.

It does what `tavq compare` and `tavq evaluate` do, with fewer metrics. So few steps on so few images show which files
are written, and say nothing about the methods.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tavq_plugin.evaluation.compare import compare
from tavq_plugin.evaluation.plan import plan_of
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.sources.evaluate_sources import evaluate_sources

# without judging networks and attentive probes, which take most of the time of so short a comparison
FEW_METRICS = EvaluationSettings(words=20, transport_images=10, judges=(), attentive=False)
SETUP = """
import torch
from tavq_plugin.training.build_host import small_vqgan  # stands for your own VQGAN and its weights


def build():
    torch.manual_seed(0)
    return small_vqgan(16)
"""


def main(steps: int = 20) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare `vqgan` and `tavq`, then measure a third tokenizer; the content of compare.json and of evaluate.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = plan_of(
            out=folder / "comparison", methods="vqgan,tavq", seeds="0", resolution=16, steps=steps, n_train=24,
            n_eval=14, overrides=["batch_size=4"], equal_time=False,
        )  # fmt: skip
        compared = compare(replace(plan, evaluation=FEW_METRICS))
        print(compared["headline"])
        setup = folder / "my_setup.py"
        setup.write_text(SETUP, encoding="utf-8")
        evaluated = evaluate_sources(
            [f"mine={setup}:build", str(folder / "comparison")], out=folder / "evaluation", split="test",
            evaluation=FEW_METRICS,
        )  # fmt: skip
        print(evaluated["headline"])
        print("written: " + ", ".join(sorted(path.name for path in folder.glob("*/*.html"))))
    return compared, evaluated


if __name__ == "__main__":
    main()
