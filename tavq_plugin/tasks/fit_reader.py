"""The causal model of one condition, trained to write words about images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.causal_model import CausalModel
from tavq_plugin.tasks.fit_model import FitSettings, fit_model
from tavq_plugin.tasks.reading_conditions import ReadingCondition
from tavq_plugin.tasks.task import ModelSettings, TaskSettings
from tavq_plugin.tasks.vocabulary import Vocabulary

ReaderLoss = Callable[[CausalModel, Tensor, Tensor, torch.Generator], Tensor]
"""(model, what it reads of every training image, positions in the images that are trained b, random numbers)."""


def reader_settings(*, quick: bool) -> TaskSettings:
    """The default settings of tasks that write words: three layers and 600 steps of 16 images; 20 steps if quick."""
    steps = 20 if quick else 600
    fit = FitSettings(steps=steps, batch_size=16, learning_rate=3e-3, warmup=min(30, steps // 3))
    return TaskSettings(ModelSettings(layers=3), fit, quick=quick)


def fit_reader(
    condition: ReadingCondition,
    loss_of: ReaderLoss,
    *,
    vocabulary: Vocabulary,
    longest: int,
    n: int,
    settings: TaskSettings,
    made_from: Mapping[str, Any],
    progress: Callable[[int, int], None],
    start: CausalModel | None = None,
) -> CausalModel:
    """The model of this condition, trained on n images, or loaded if it was.

    Args:
        condition: What the model reads, its seed and its folder.
        loss_of: The loss of a step.
        vocabulary: The words it knows.
        longest: The greatest number of words after the codes.
        n: Number of training images with text.
        settings: Its size, and how it is trained.
        made_from: What it depends on besides the condition and the settings.
        progress: Called with the steps that are done, and all steps.
        start: A model of the same shape whose weights it starts from. Default: new weights.
    """
    with drawn_from(condition.seed):
        prefix = condition.prefix()
        model = CausalModel(prefix, len(vocabulary), settings.model, longest=len(prefix.place) + longest)
    if start is not None:
        model.load_state_dict(start.state_dict())

    def loss(net: Any, rows: Tensor, draw: torch.Generator) -> Tensor:
        return loss_of(net, condition.train, rows, draw)

    fit_model(
        model,
        loss,
        n=n,
        settings=replace(settings.fit, seed=condition.seed),
        folder=condition.folder,
        made_from={**condition.made_from, **made_from, "model": asdict(settings.model), "words": len(vocabulary)},
        progress=progress,
    )
    return model
