"""Find the object that a phrase names from the codes of a tokenizer, with and without training; offline, on a CPU."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import tavq_plugin as tavq
from tavq_plugin.pixels import to_float
from tavq_plugin.tasks.grounding import Grounding
from tavq_plugin.tasks.task import EncodedRun, TaskResult, Workplace
from tavq_plugin.tasks.task_data import TaskData, drawn_data
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout
from tavq_plugin.text.encoder import TextEncoder, offline_encoder
from tavq_plugin.training.build_host import small_vqgan


def aligned_run(data: TaskData, encoder: TextEncoder, *, steps: int) -> EncodedRun:
    """A small tokenizer that learns to reconstruct images and to match their codes with their captions; its tokens."""
    images, texts = to_float(data.train.images), [captions[0] for captions in data.train.captions]
    torch.manual_seed(0)
    tokenizer = tavq.wrap(small_vqgan(images.shape[-1]))
    align = tavq.TextAlignment(tokenizer, encoder=encoder)
    optimizer = torch.optim.Adam([*tokenizer.parameters(), *align.parameters()], lr=4e-4)
    for step in range(steps):
        rows = [(8 * step + i) % len(images) for i in range(8)]
        (reconstruction, quantizer_loss), codes = tokenizer(images[rows])
        loss = (reconstruction - images[rows]).abs().mean() + quantizer_loss + codes.loss
        loss = loss + 0.3 * align(codes, [texts[row] for row in rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    vectors = tokenizer.adapter.codebook().detach()
    train, held_out = (
        tokens_of(tokenizer, part.images, vectors, data.fingerprint) for part in (data.train, data.held_out)
    )
    return EncodedRun("example", 0, tokenizer, align, train, held_out)


@torch.no_grad()
def tokens_of(tokenizer: tavq.Tokenizer, images: Tensor, vectors: Tensor, name: str) -> CodeSequences:
    """The codes of the last level, which the decoder reads, as one sequence per image."""
    indices = torch.cat([tokenizer.encode(to_float(part)).final.indices for part in images.split(50)])
    layout = TokenLayout((LevelGrid(*indices.shape[1:], len(vectors)),))
    return CodeSequences(layout.flatten([indices]), layout, vectors, f"the example's tokenizer on {name}")


def main(steps: int = 300, n_train: int = 400, n_eval: int = 60) -> TaskResult:
    """Train a tokenizer and the task's heads, and print how often the box of a phrase is right."""
    data, encoder = drawn_data(resolution=32, n_train=n_train, n_eval=n_eval), offline_encoder()
    run = aligned_run(data, encoder, steps=steps)
    task = Grounding()
    settings = task.settings(quick=False)
    settings = replace(settings, fit=replace(settings.fit, steps=steps, warmup=min(steps, 50)))
    with tempfile.TemporaryDirectory() as folder:
        found = task.run(run, data, settings, Workplace(Path(folder) / "own", Path(folder) / "shared", encoder))
    for name, condition in found.conditions.items():
        print(f"{name}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in condition.values.items()))
    for name, reason in found.missing.items():
        print(f"{name}: not computed, because {reason}")
    return found


if __name__ == "__main__":
    main()
