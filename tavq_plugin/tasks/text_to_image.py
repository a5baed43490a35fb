"""Text-to-image: whether images made from a text show what it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import ClassVar

import torch
from torch import Tensor

from tavq_plugin.tasks.attribute_classifier import (
    AttributeClassifier,
    agreement,
    asked_attributes,
    attribute_classifier,
    attributes_of,
)
from tavq_plugin.tasks.decode_tokens import decode_tokens
from tavq_plugin.tasks.feature_distance import FeatureDistances
from tavq_plugin.tasks.fit_masked import (
    LEARNT,
    SAMPLES,
    fit_masked,
    made_prompt,
    masked_settings,
    parameters_of,
    sampling_of,
)
from tavq_plugin.tasks.masked_model import MaskedModel, sample
from tavq_plugin.tasks.reading_conditions import other_rows
from tavq_plugin.tasks.sampling import SamplingSettings
from tavq_plugin.tasks.task import OF_CODES, Condition, EncodedRun, Sample, TaskResult, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData, TaskImages
from tavq_plugin.tasks.text_condition import TextCondition, caption_store, prompt_store, without_units
from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.store import TextStore

STEPS = 500  # of the model's training
GUIDANCE = 2.5
SAMPLING = SamplingSettings(steps=8, guidance=GUIDANCE)
SHUFFLED = "shuffled texts"
AGREEMENT = "attribute_agreement"
UNGUIDED = "_unguided"  # ends the name of a metric of samples without guidance


class TextToImage:
    """One image for the first caption of each held-out image, with guidance and without.

    On drawn scenes, a frozen classifier says which attributes the image shows: those that the text names must be
    there, and as many near misses must not. On other images only the feature distances are measured.
    """

    name: ClassVar[str] = "text-to-image"
    main_metric: ClassVar[str] = AGREEMENT
    smaller_is_better: ClassVar[bool] = False

    def unfit(self, data: TaskData) -> str:
        """Captions are needed."""
        if any(first_captions(data.train)) and any(first_captions(data.held_out)):
            return ""
        return "text-to-image needs captions, and these images have none: give data with texts"

    def settings(self, *, quick: bool) -> TaskSettings:
        """The task's own default settings."""
        return masked_settings(SAMPLING, steps=STEPS, quick=quick)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Train on the codes, with learnt rows and on wrong pairs; sample for each text; measure beside controls."""
        captions, n_train = [*first_captions(data.train), *first_captions(data.held_out)], len(data.train)
        store = caption_store(captions, at.encoder, at.shared / "texts", n_train=n_train)
        classifier, accuracy = attribute_classifier(data, at, quick=settings.quick)
        distances = FeatureDistances(data.held_out.images, classifier, at)
        seed = settings.fit.seed or run.seed
        straight = torch.arange(len(captions))
        wrong = torch.cat([other_rows(n_train, seed), n_train + other_rows(len(data.held_out), seed)])
        texts_of = {OF_CODES: straight, LEARNT: straight, SHUFFLED: wrong}
        models = {name: text_model(run, store, settings, at, rows=rows, name=name) for name, rows in texts_of.items()}
        guided = sampling_of(settings, run)
        judge = _Judge(data.held_out, classifier, distances)
        conditions, shown = {}, {}
        for name, model in models.items():
            given = texts_of[name][n_train:]
            shown[name] = decode_tokens(run, from_texts(model, store, given, guided))
            conditions[name] = judge(shown[name])
        plain = decode_tokens(
            run, from_texts(models[OF_CODES], store, straight[n_train:], replace(guided, guidance=1.0))
        )
        conditions[OF_CODES] = judge(shown[OF_CODES], unguided=plain)
        missing = dict(distances.missing)
        if data.held_out.scenes:
            conditions["majority"] = _majority(data)
            conditions["reconstructions"] = judge.attributes(decode_tokens(run, run.held_out.tokens))
            conditions["real images"] = judge.attributes(data.held_out.images)
        else:
            missing[AGREEMENT] = "the attributes are those of drawn scenes, and these images are no scenes"
        return TaskResult(
            conditions,
            missing=missing,
            samples=[
                Sample(caption, (made, image))
                for caption, made, image in zip(
                    captions[n_train : n_train + SAMPLES], shown[OF_CODES], data.held_out.images, strict=False
                )
            ],
            protocol={
                "images": len(data.held_out),
                "texts_without_units": int(without_units(store, straight[n_train:]).sum()),
                "classifier_agreement_with_real_scenes": accuracy,
                "parameters": parameters_of(models[OF_CODES]),
                "sampling": asdict(guided),
            },
        )


def first_captions(images: TaskImages) -> list[str]:
    """The first caption of each image; "" where it has none."""
    return [captions[0] if captions else "" for captions in images.captions]


def text_model(
    run: EncodedRun, store: TextStore, settings: TaskSettings, at: Workplace, *, rows: Tensor, name: str = OF_CODES
) -> MaskedModel:
    """A model of the run's codes given the texts of `rows` of a store, one row for each training image."""
    return fit_masked(
        run, settings, at.own / TextToImage.name / name.replace(" ", "-"), at, label=f"{TextToImage.name}, {name}",
        embedding="indices" if name == LEARNT else None,
        condition=lambda: TextCondition(store.dim, settings.model.width),
        inputs=lambda images: store.batch(rows[images]),
        made_from={"texts": store.fingerprint, "pairs": "shuffled" if name == SHUFFLED else "true"},
    )  # fmt: skip


@torch.no_grad()
def from_texts(model: MaskedModel, store: TextStore, rows: Tensor, settings: SamplingSettings) -> Tensor:
    """Tokens for some texts of a store, b -> b n."""
    prompt = made_prompt(model, store.batch(rows))
    return sample(model, torch.full((len(rows), model.layout.length), model.layout.mask), settings, prompt=prompt)


def from_prompts(
    run: EncodedRun,
    model: MaskedModel,
    prompts: Sequence[str],
    encoder: TextEncoder,
    like: TextStore,
    settings: SamplingSettings = SAMPLING,
) -> Tensor:
    """Images for a user's own prompts; b texts -> b 3 r r uint8. `like` holds the units of the training texts.

    Raises ValueError as `prompt_store` does.
    """
    store = prompt_store(prompts, encoder, like)
    return decode_tokens(run, from_texts(model, store, torch.arange(len(prompts)), settings))


class _Judge:
    """Measures one image for each held-out image."""

    def __init__(self, held_out: TaskImages, classifier: AttributeClassifier, distances: FeatureDistances) -> None:
        self.scenes, self.classifier, self.distances = held_out.scenes, classifier, distances

    def __call__(self, images: Tensor, *, unguided: Tensor | None = None) -> Condition:
        """Attributes and distances of guided images, and beside them of images without guidance."""
        values: dict[str, float] = {}
        per_image: dict[str, Tensor] = {}
        for suffix, made in {"": images, UNGUIDED: unguided}.items():
            if made is None:
                continue
            found = self.attributes(made) if self.scenes else Condition({})
            values |= {f"{name}{suffix}": value for name, value in {**found.values, **self.distances(made)}.items()}
            per_image |= {f"{name}{suffix}": each for name, each in found.per_image.items()}
        return Condition(values, per_image)

    def attributes(self, images: Tensor) -> Condition:
        """How many of the asked attributes are as they should be."""
        true, asked = attributes_of(self.scenes), asked_attributes(self.scenes)
        each = agreement(self.classifier.judge(images).present, true, asked)
        return Condition({AGREEMENT: each.mean().item()}, {AGREEMENT: each})


def _majority(data: TaskData) -> Condition:
    """Every attribute as most training images have it."""
    commonest = attributes_of(data.train.scenes).float().mean(0) > 0.5
    true, asked = attributes_of(data.held_out.scenes), asked_attributes(data.held_out.scenes)
    each = agreement(commonest.expand_as(true), true, asked)
    return Condition({AGREEMENT: each.mean().item()}, {AGREEMENT: each})
