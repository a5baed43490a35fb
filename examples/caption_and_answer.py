"""Captions and answers from the codes of a tokenizer; runs offline on a CPU.

A VQGAN for 16 × 16 pixels stands for your own tokenizer, and its weights are random. So few steps on so few images
show how the parts fit together, and say nothing about the codes: `tavq task captioning` and `tavq task vqa` train
longer, beside controls.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import tavq_plugin as tavq
from tavq_plugin.pixels import to_float
from tavq_plugin.tasks.captioning import Captioning
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.task import EncodedRun, ModelSettings, TaskResult, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskImages, drawn_data
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout
from tavq_plugin.tasks.vqa import Vqa
from tavq_plugin.text import offline_encoder
from tavq_plugin.training.build_host import small_vqgan


@torch.no_grad()
def encoded(tokenizer: tavq.Tokenizer, part: TaskImages) -> CodeSequences:
    """The tokens of the images' last level."""
    indices = tokenizer.encode(to_float(part.images)).final.indices
    vectors = tokenizer.adapter.codebook().detach().float()
    layout = TokenLayout((LevelGrid(*indices.shape[1:], len(vectors)),))
    return CodeSequences(layout.flatten([indices]), layout, vectors, "random weights of seed 0")


def main(steps: int = 20) -> dict[str, TaskResult]:
    """Train both tasks on drawn scenes; their results by the task's name."""
    torch.manual_seed(0)
    tokenizer = tavq.wrap(small_vqgan(16).eval()).eval()
    data = drawn_data(resolution=16, n_train=24, n_eval=8)
    run = EncodedRun("mine", 0, tokenizer, None, encoded(tokenizer, data.train), encoded(tokenizer, data.held_out))
    settings = TaskSettings(ModelSettings(width=32, layers=2), FitSettings(steps=steps, batch_size=8, warmup=1))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        at = Workplace(Path(folder) / "mine", Path(folder) / "shared", offline_encoder())
        for task in (Captioning(), Vqa()):
            result = results[task.name] = task.run(run, data, settings, at)
            for name, condition in result.conditions.items():
                print(f"{task.name}, {name}: {task.main_metric} {condition.values[task.main_metric]:.3f}")
            sample = result.samples[0]
            print(f"{task.name}: {sample.given} {sample.text!r}; true: {sample.truth!r}")
    return results


if __name__ == "__main__":
    main()
