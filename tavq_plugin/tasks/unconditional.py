"""Unconditional generation: how far sampled images are from real ones."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import ClassVar

import torch
from torch import Tensor

from tavq_plugin.tasks.attribute_classifier import attribute_classifier
from tavq_plugin.tasks.decode_tokens import decode_tokens
from tavq_plugin.tasks.feature_distance import OF_CLASSIFIER, FeatureDistances
from tavq_plugin.tasks.fit_masked import (
    LEARNT,
    SAMPLES,
    commonest_tokens,
    fit_masked,
    masked_settings,
    parameters_of,
    sampling_of,
)
from tavq_plugin.tasks.masked_model import MaskedModel, sample
from tavq_plugin.tasks.sampling import SamplingSettings
from tavq_plugin.tasks.task import OF_CODES, Condition, EncodedRun, Sample, TaskResult, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData

STEPS = 500  # of the model's training


class Unconditional:
    """Images from nothing, by their Fréchet distance to the held-out images.

    Every condition has as many images as are held out, and none is made from a held-out image: the tokenizer's
    reconstructions are of training images, so that samples and reconstructions are compared alike. "real images" shows
    the distance of other real images, which few images keep above 0.
    """

    name: ClassVar[str] = "unconditional"
    main_metric: ClassVar[str] = OF_CLASSIFIER
    smaller_is_better: ClassVar[bool] = True

    def unfit(self, data: TaskData) -> str:
        """Every image can serve."""
        return ""

    def settings(self, *, quick: bool) -> TaskSettings:
        """The task's own default settings."""
        return masked_settings(SamplingSettings(steps=16), steps=STEPS, quick=quick)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Train on the codes, sample in Halton order and by confidence, and measure both beside the controls."""
        n = min(len(data.held_out), len(data.train))
        classifier, accuracy = attribute_classifier(data, at, quick=settings.quick)
        distances = FeatureDistances(data.held_out.images[:n], classifier, at)
        model = unconditional_model(run, settings, at)
        learnt = unconditional_model(run, settings, at, embedding="indices")
        how = sampling_of(settings, run)
        other = "confidence" if how.order == "halton" else "halton"
        rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(run.seed))[:n]
        tokens = {
            OF_CODES: sampled(model, n, how),
            f"{other} order": sampled(model, n, replace(how, order=other)),
            LEARNT: sampled(learnt, n, how),
            "shuffled codes": _shuffled_places(run.train.tokens, n, run.seed),
            "majority": commonest_tokens(run).expand(n, -1),
            "reconstructions": run.train.tokens[rows],
        }
        images = {name: decode_tokens(run, made) for name, made in tokens.items()}
        images["real images"] = data.train.images[rows]
        return TaskResult(
            {name: Condition(distances(made)) for name, made in images.items()},
            missing=distances.missing,
            samples=[Sample("", (image,)) for image in images[OF_CODES][:SAMPLES]],
            protocol={
                "images": n,
                "classifier_agreement_with_real_scenes": accuracy,
                "parameters": parameters_of(model),
                "sampling": asdict(how),
                "shuffled codes": "each place has the code of another image: only frequencies are left",
            },
        )


def unconditional_model(
    run: EncodedRun, settings: TaskSettings, at: Workplace, *, embedding: str | None = None
) -> MaskedModel:
    """The model of the run's codes; completion uses the same one."""
    name = LEARNT if embedding == "indices" else OF_CODES
    folder = at.own / "unconditional" / name.replace(" ", "-")
    return fit_masked(run, settings, folder, at, label=f"unconditional, {name}", embedding=embedding)


def sampled(model: MaskedModel, n: int, settings: SamplingSettings) -> Tensor:
    """Tokens of n images, from nothing; n s."""
    return sample(model, torch.full((n, model.layout.length), model.layout.mask), settings)


def _shuffled_places(tokens: Tensor, n: int, seed: int) -> Tensor:
    """Each place's tokens in an order of its own, so that an image's places do not belong together; -> n s."""
    draw = torch.Generator().manual_seed(seed)
    return tokens.gather(0, torch.rand(tokens.shape, generator=draw).argsort(0))[:n]
