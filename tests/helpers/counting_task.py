"""A task without a model: how often a place has the token that it most often has in the training images."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.tasks.decode_tokens import decode_tokens
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.task import OF_CODES, Condition, EncodedRun, Sample, TaskResult, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData


class Counting:
    """Its codes' `match` is above that of the control by `lead`; `broken` runs raise, `nan` ones give no number."""

    name = "counting"
    main_metric = "match"
    smaller_is_better = False

    def __init__(self, lead: float = 0.1, broken: tuple[str, ...] = (), nan: tuple[str, ...] = ()) -> None:
        self.lead, self.broken, self.nan, self.calls = lead, broken, nan, []

    def unfit(self, data: TaskData) -> str:
        return "" if data.train.captions else "no image has a caption: give data with captions"

    def settings(self, *, quick: bool) -> TaskSettings:
        return TaskSettings(fit=FitSettings(steps=2 if quick else 4), quick=quick)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        self.calls.append((run.name, run.seed, settings.fit.steps))
        if run.name in self.broken:
            raise FloatingPointError("the loss is nan")
        for step in range(settings.fit.steps):
            at.progress(f"counting with {run.name}", step + 1, settings.fit.steps)
        each = (run.held_out.tokens == run.train.tokens.mode(0).values).double().mean(1) + run.seed / 100
        each[0] = float("nan")  # an image without a value
        value = float("nan") if run.name in self.nan else float(each.nanmean())
        images = decode_tokens(run, run.held_out.tokens[:2])
        return TaskResult(
            {
                OF_CODES: self.condition(value + self.lead, each + self.lead),
                "shuffled codes": self.condition(value, each),
                "majority": Condition({"match": 0.05}),
            },
            missing={"spice": "it needs Java"},
            samples=[Sample(f"<given> {i}", [image], "what it <wrote>", "the truth") for i, image in enumerate(images)],
            protocol={"images": torch.numel(each)},
        )

    @staticmethod
    def condition(value: float, each: Tensor) -> Condition:
        return Condition({"match": value, "size": 31.5}, {"match": each})
