"""Train a masked model on the tokens of a run, and decode what it samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.fit_model import FitSettings, fit_model
from tavq_plugin.tasks.masked_model import MaskedModel, Prompt, masked_loss
from tavq_plugin.tasks.sampling import SamplingSettings
from tavq_plugin.tasks.task import EncodedRun, ModelSettings, TaskSettings, Workplace

LEARNT = "learnt embedding"
DROP = 0.1  # probability that an image is trained without its prompt, which guidance needs
SAMPLES = 8  # images of each condition that the page shows


def masked_settings(sampling: SamplingSettings, *, steps: int, quick: bool) -> TaskSettings:
    """Settings of the tasks with a masked model."""
    fit = FitSettings(steps=40 if quick else steps, warmup=10 if quick else 50, learning_rate=3e-3)
    return TaskSettings(ModelSettings(layers=3), fit, quick, sampling)


def fit_masked(
    run: EncodedRun,
    settings: TaskSettings,
    folder: Path,
    at: Workplace,
    *,
    label: str,
    embedding: str | None = None,
    condition: Callable[[], nn.Module] | None = None,
    inputs: Callable[[Tensor], Any] | None = None,
    context: Tensor | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> MaskedModel:
    """A masked model of the run's training tokens, in eval mode; kept in `folder`.

    Its seed is the run's, unless the settings have one.

    Args:
        run: Gives the tokens.
        settings: Sizes and training.
        folder: Where the model is kept.
        at: Reports progress.
        label: What is trained, for the progress.
        embedding: "codebook" or "indices", instead of that of the settings.
        condition: Makes the module that turns `inputs` into prompts, with new weights.
        inputs: What the condition is given for some training images.
        context: n s, tokens that are shown in place of the images' own, for the control with wrong pairs.
        made_from: What the model depends on besides settings and tokens.
    """
    sizes = replace(settings.model, embedding=embedding or settings.model.embedding)
    seed, tokens = settings.fit.seed or run.seed, run.train.tokens
    with drawn_from(seed):
        model = MaskedModel(run.train, sizes, condition=condition and condition())

    def loss_of(net: nn.Module, rows: Tensor, draw: torch.Generator) -> Tensor:
        device = model.start.device
        prompt = None if inputs is None else made_prompt(model, inputs(rows))
        shown = None if context is None else context[rows].to(device)
        return masked_loss(model, tokens[rows].to(device), draw, prompt=prompt, drop=DROP, context=shown)

    depends = {"tokens": run.train.fingerprint, "model": asdict(sizes), **(made_from or {})}
    fit_model(
        model,
        loss_of,
        n=len(tokens),
        settings=replace(settings.fit, seed=seed),
        folder=folder,
        made_from=depends,
        progress=lambda done, total: at.progress(label, done, total),
    )
    return model


def made_prompt(model: MaskedModel, given: Any) -> Prompt:
    """The prompts of what a task is given, by the model's own condition. Raises ValueError if it has none."""
    if model.condition is None:
        raise ValueError("this model was trained without a condition: it takes no prompt")
    return model.condition(given)


def sampling_of(settings: TaskSettings, run: EncodedRun) -> SamplingSettings:
    """How samples of a run are drawn; the seed is the run's, unless the settings have one."""
    return replace(settings.sampling, seed=settings.sampling.seed or run.seed)


def parameters_of(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def commonest_tokens(run: EncodedRun) -> Tensor:
    """The commonest training token of each place; n int64. The control that sees no image."""
    return run.train.tokens.mode(0).values
