"""Captioning: a small causal model reads the codes of an image and writes a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tavq_plugin.data.synthetic_scenes import BACKGROUNDS, COLOURS, COLUMNS, ROWS, SHAPES, SIZES, TEXTURES
from tavq_plugin.tasks.bits_per_code import NOTE, bits_per_code
from tavq_plugin.tasks.caption_scores import caption_scores
from tavq_plugin.tasks.captioner import (
    CAPTIONER,
    LONGEST,
    CaptionRows,
    caption_rows,
    first_captions,
    fit_captioner,
    reader_words,
    with_caption,
)
from tavq_plugin.tasks.causal_model import NOT_TRAINED, CausalModel, likeliest
from tavq_plugin.tasks.fit_reader import reader_settings
from tavq_plugin.tasks.reading_conditions import reading_conditions
from tavq_plugin.tasks.task import (
    OF_CODES,
    Condition,
    EncodedRun,
    Sample,
    TaskResult,
    TaskSettings,
    Workplace,
)
from tavq_plugin.tasks.task_data import TaskData, TaskImages
from tavq_plugin.tasks.vocabulary import END, PADDING, START, UNKNOWN, Vocabulary, unknown_share, words_of

CONTENT = frozenset((*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *TEXTURES, *ROWS, *COLUMNS))
MAJORITY = "majority"
BATCH = 100  # images of an evaluation pass
SAMPLES = 4
FIRST = "a caption is trained and measured word by word on each image's first one, and scored against all of them"


class Captioning:
    """Write captions; token accuracy is measured with the true words before each (teacher forcing)."""

    name: ClassVar[str] = CAPTIONER
    main_metric: ClassVar[str] = "token_accuracy"
    smaller_is_better: ClassVar[bool] = False

    def unfit(self, data: TaskData) -> str:
        """Why these data cannot serve, or ""."""
        for part, images in (("training", data.train), ("held-out", data.held_out)):
            if len(with_caption(images)) < 2:
                return (
                    f"{data.name}: fewer than two {part} images have a caption; give data with captions "
                    "(captions.jsonl, COCO captions, Flickr8k)"
                )
        return ""

    def settings(self, *, quick: bool) -> TaskSettings:
        """Those of the tasks that write words."""
        return reader_settings(quick=quick)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Train on the codes and on each control, and measure on the held-out images."""
        if problem := self.unfit(data):
            raise ValueError(problem)
        words = reader_words(data)
        vocabulary, longest = words
        train, held_out = (caption_rows(part, vocabulary) for part in (data.train, data.held_out))
        content = _content_words(vocabulary) if data.train.scenes else None
        conditions: dict[str, Condition] = {}
        samples, missing, parameters = list[Sample](), dict[str, str](), 0
        for condition in reading_conditions(self.name, run, data, settings, at):
            progress = partial(at.progress, f"{self.name}, {condition.name}")
            model = fit_captioner(condition, train, words, settings, progress)
            right = right_words(model, condition.held_out, held_out)
            written = captions(model, condition.held_out[held_out.image], vocabulary, at_most=longest)
            conditions[condition.name], missing = _measured(right, written, held_out, content, data.held_out)
            if condition.name == OF_CODES:
                parameters = sum(p.numel() for p in model.parameters())
                samples = _samples(written, held_out, data.held_out)
        commonest = majority_words(train, longest)
        right = commonest[: held_out.targets.shape[1]] == held_out.targets
        text = vocabulary.text(commonest.tolist())
        conditions[MAJORITY], _ = _measured(right, [text] * len(right), held_out, content, data.held_out)
        bits = bits_per_code(
            run.train, run.held_out, model=settings.model,
            fit=replace(settings.fit, seed=settings.fit.seed or run.seed), folder=at.own / self.name / "bits-per-code",
            made_from={"tokens": [run.train.fingerprint, run.held_out.fingerprint]},
            progress=lambda done, total: at.progress(f"{self.name}, bits per code", done, total),
        )  # fmt: skip
        for name, values in ((OF_CODES, bits.model), (MAJORITY, bits.frequencies)):
            conditions[name] = _with_metric(conditions[name], "bits_per_code", values)
        protocol = _protocol(data, settings, vocabulary, train, held_out) | {"parameters": parameters}
        return TaskResult(conditions, missing, samples, protocol)


@torch.no_grad()
def right_words(model: CausalModel, given: Tensor, rows: CaptionRows) -> Tensor:
    """Whether each next word is the likeliest, given the true words before it; m t-1 bool.

    A word that is not in the vocabulary is never right.
    """
    device, right = next(model.parameters()).device, []
    for image, inputs, targets in zip(*(x.split(BATCH) for x in (rows.image, rows.inputs, rows.targets)), strict=True):
        right.append(likeliest(model(given[image].to(device), inputs.to(device))).cpu() == targets)
    return torch.cat(right)


def captions(model: CausalModel, given: Tensor, vocabulary: Vocabulary, *, at_most: int = LONGEST) -> list[str]:
    """The caption that the model writes for each image, word by likeliest word; codes b n or images."""
    device, texts = next(model.parameters()).device, list[str]()
    for part in given.split(BATCH):
        written = model.write(part.to(device), [[START]] * len(part), at_most=at_most)
        texts += [vocabulary.text(row) for row in written]
    return texts


def majority_words(rows: CaptionRows, longest: int) -> Tensor:
    """The commonest word at each position of the captions, as far as any caption reaches, then `END`; longest int64."""
    words = torch.full((longest,), END)
    targets = rows.targets
    for position in range(targets.shape[1]):
        column = targets[:, position]
        if (column != NOT_TRAINED).any():
            words[position] = torch.bincount(column[column != NOT_TRAINED]).argmax()
    return words


def word_shares(right: Tensor, counted: Tensor) -> Tensor:
    """The share of the counted words that are right, per image; m t bool -> m, NaN without any."""
    return (right & counted).sum(1).double() / counted.sum(1)


def _content_words(vocabulary: Vocabulary) -> Tensor:
    """Which numbers are words of content; v bool."""
    known = torch.zeros(len(vocabulary), dtype=torch.bool)
    known[[number for word in sorted(CONTENT) for number in vocabulary.numbers(word)]] = True
    known[UNKNOWN] = False
    return known


def _measured(
    right: Tensor, written: Sequence[str], rows: CaptionRows, content: Tensor | None, images: TaskImages
) -> tuple[Condition, dict[str, str]]:
    """The scores of one condition, and what is not computed."""
    after = rows.words[:, 1:]
    shares = {"token_accuracy": word_shares(right, after != PADDING)}
    missing = {"content_accuracy": "which words are content is known for drawn scenes alone"}
    if content is not None:
        shares["content_accuracy"], missing = word_shares(right, content[after]), {}
    true = [[text for text in images.captions[i] if words_of(text)] for i in rows.image.tolist()]
    scores = caption_scores(written, true)
    of_rows = shares | dict(scores.per_image)
    values = {name: value.nanmean().item() for name, value in shares.items()} | dict(scores.values)
    per_image = {}
    for name, value in of_rows.items():
        per_image[name] = torch.full((len(images),), torch.nan, dtype=torch.double)
        per_image[name][rows.image] = value
    return Condition(values, per_image), missing | dict(scores.missing)


def _with_metric(condition: Condition, name: str, values: Tensor) -> Condition:
    return Condition({**condition.values, name: values.mean().item()}, {**condition.per_image, name: values})


def _samples(written: Sequence[str], rows: CaptionRows, images: TaskImages) -> list[Sample]:
    return [
        Sample("", (images.images[i],), text, images.captions[i][0])
        for i, text in zip(rows.image[:SAMPLES].tolist(), written, strict=False)
    ]


def _protocol(
    data: TaskData, settings: TaskSettings, vocabulary: Vocabulary, train: CaptionRows, held_out: CaptionRows
) -> dict[str, Any]:
    parts = {"train": (data.train, train), "held_out": (data.held_out, held_out)}
    return {
        "images": {name: len(images) for name, (images, _) in parts.items()},
        "images_without_text": {name: len(images) - len(rows.image) for name, (images, rows) in parts.items()},
        "captions_cut": {name: rows.cut for name, (_, rows) in parts.items()},
        "unknown_words": {
            name: unknown_share(first_captions(images), vocabulary) for name, (images, _) in parts.items()
        },
        "vocabulary": len(vocabulary),
        "steps": settings.fit.steps,
        "batch_size": settings.fit.batch_size,
        "captions": FIRST,
        "bits_per_code": NOTE,
    }
