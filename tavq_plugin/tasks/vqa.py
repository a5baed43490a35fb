"""Visual question answering: a small causal model reads the codes of an image and a question, and writes the answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.tasks.answer_scores import (
    NO_WORDNET,
    answer_scores,
    common_kinds,
    wordnet_likeness,
    wups,
)
from tavq_plugin.tasks.captioner import CAPTIONER, caption_rows, fit_captioner, reader_words
from tavq_plugin.tasks.causal_model import NOT_TRAINED, CausalModel, likeliest, word_loss
from tavq_plugin.tasks.fit_reader import fit_reader, reader_settings
from tavq_plugin.tasks.questions import PER_IMAGE, Questions, drawn_questions, prompt_of, questions_of
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
from tavq_plugin.tasks.vocabulary import PADDING, START, UNKNOWN, Vocabulary, unknown_share, words_of

QUESTION_WEIGHT = 0.2  # of the loss on the questions' words, which tell what the image shows
LONGEST_ANSWER = 8  # words
MAJORITY = "majority"
BATCH = 50  # images of an evaluation pass
SAMPLES = 4


class Vqa:
    """Answer questions; an answer counts if all its words are the true ones."""

    name: ClassVar[str] = "vqa"
    main_metric: ClassVar[str] = "answer_accuracy"
    smaller_is_better: ClassVar[bool] = False

    def unfit(self, data: TaskData) -> str:
        """Why these data cannot serve, or ""."""
        for part, images in (("training", data.train), ("held-out", data.held_out)):
            if sum(bool(of_image) for of_image in images.questions) < 2:
                return (
                    f"{data.name}: fewer than two {part} images have questions with answers; give data that have them "
                    "(drawn scenes, DAQUAR, COCO-QA)"
                )
        return ""

    def settings(self, *, quick: bool) -> TaskSettings:
        """Those of the tasks that write words, which are the captioner's, too."""
        return reader_settings(quick=quick)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Train on the codes and on each control, and measure on the held-out images."""
        if problem := self.unfit(data):
            raise ValueError(problem)
        words = reader_words(data)
        vocabulary = words.vocabulary
        train, held_out = (questions_of(part, vocabulary) for part in (data.train, data.held_out))
        with_questions = (train.of_image[:, 0] < len(train.asked)).nonzero().flatten()
        captions = caption_rows(data.train, vocabulary)
        captioned = reading_conditions(CAPTIONER, run, data, settings, at)
        starts_from = "the captioner" if len(captions.image) > 1 else "new weights"
        likeness = wordnet_likeness()

        def loss_of(net: CausalModel, given: Tensor, rows: Tensor, draw: torch.Generator) -> Tensor:
            images = with_questions[rows]
            return packed_loss(net, given[images], train, drawn_questions(train, images, draw))

        depends = {
            "task": self.name, "per_image": PER_IMAGE, "question_weight": QUESTION_WEIGHT, "starts_from": starts_from
        }  # fmt: skip
        conditions: dict[str, Condition] = {}
        samples, parameters = list[Sample](), 0
        for condition, own in zip(reading_conditions(self.name, run, data, settings, at), captioned, strict=True):
            start = None
            if starts_from == "the captioner":
                progress = partial(at.progress, f"{CAPTIONER}, {own.name}")
                start = fit_captioner(own, captions, words, settings, progress)
            model = fit_reader(
                condition, loss_of, vocabulary=vocabulary, longest=words.longest, n=len(with_questions),
                settings=settings, made_from=depends, start=start,
                progress=partial(at.progress, f"{self.name}, {condition.name}"),
            )  # fmt: skip
            right = right_answers(model, condition.held_out, held_out)
            conditions[condition.name] = _measured(right, held_out, len(data.held_out))
            if likeness is not None:
                given = condition.held_out[held_out.image]
                written = answers(model, given, [item["question"] for item in held_out.asked], vocabulary)
                near = [
                    wups(text, item["answer"], likeness) for text, item in zip(written, held_out.asked, strict=True)
                ]
                values = {**conditions[condition.name].values, "wups": sum(near) / len(near)}
                conditions[condition.name] = replace(conditions[condition.name], values=values)
            if condition.name == OF_CODES:
                parameters = sum(p.numel() for p in model.parameters())
                samples = _samples(model, condition.held_out, held_out, data.held_out, vocabulary)
        guesses = majority_answers(train, held_out)
        right = torch.tensor(
            [words_of(guess) == words_of(item["answer"]) for guess, item in zip(guesses, held_out.asked, strict=True)]
        )
        conditions[MAJORITY] = _measured(right, held_out, len(data.held_out))
        missing = {} if likeness is not None else {"wups": NO_WORDNET}
        protocol = _protocol(data, settings, vocabulary, train, held_out) | {
            "parameters": parameters,
            "starts_from": starts_from,
        }
        return TaskResult(conditions, missing, samples, protocol)


def answers(model: CausalModel, given: Tensor, questions: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """The answer that the model writes to each question, one per row of `given`: codes b n, or images.

    Raises ValueError for an empty question, or if there is not one per row.
    """
    prompts, device, texts = [prompt_of(question, vocabulary) for question in questions], _device(model), list[str]()
    if len(prompts) != len(given):
        raise ValueError(f"got {len(prompts)} questions for {len(given)} rows of codes: give one question per row")
    for start in range(0, len(prompts), 4 * BATCH):
        part = slice(start, start + 4 * BATCH)
        written = model.write(given[part].to(device), prompts[part], at_most=LONGEST_ANSWER)
        texts += [vocabulary.text(row) for row in written]
    return texts


def packed_loss(model: CausalModel, given: Tensor, questions: Questions, rows: Tensor) -> Tensor:
    """The loss on the answers, and with a small weight on the questions' words; b n, b p rows -> scalar."""
    logits, picked = _in_one_pass(model, given, questions, rows)
    device, t = logits.device, logits.shape[2]
    targets, is_answer = questions.targets[picked, :t].to(device), questions.is_answer[picked, 1 : t + 1].to(device)
    known = (targets != PADDING) & (targets != UNKNOWN)
    loss = word_loss(logits.flatten(1, 2), targets.masked_fill(~(known & is_answer), NOT_TRAINED).flatten(1))
    of_question = known & ~is_answer & (targets != START)
    asked = word_loss(logits.flatten(1, 2), targets.masked_fill(~of_question, NOT_TRAINED).flatten(1))
    return loss + QUESTION_WEIGHT * asked


@torch.no_grad()
def right_answers(model: CausalModel, given: Tensor, questions: Questions) -> Tensor:
    """Whether the model writes each answer exactly, word by likeliest word; n images' codes -> q bool.

    That is so if each word of the answer, and END, is the likeliest after the true words before it, which one pass
    shows for all questions about an image.
    """
    right = torch.zeros(len(questions.asked) + 1, dtype=torch.bool)
    images = (questions.of_image[:, 0] < len(questions.asked)).nonzero().flatten()
    for part in images.split(BATCH):
        rows = questions.of_image[part]
        logits, picked = _in_one_pass(model, given[part], questions, rows)
        t = logits.shape[2]
        hit = likeliest(logits.flatten(0, 1)).cpu().view(*rows.shape, t) == questions.targets[picked, :t]
        right[rows] = (hit | ~questions.is_answer[picked, 1 : t + 1]).all(2)
    return right[:-1]


def majority_answers(train: Questions, held_out: Questions) -> list[str]:
    """For each held-out question the commonest training answer to its kind, or to all where the kind is new."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, item in zip(train.kinds, train.asked, strict=True):
        counts[kind][item["answer"]] += 1
        counts[""][item["answer"]] += 1
    commonest = {kind: min(found, key=lambda text: (-found[text], text)) for kind, found in counts.items()}
    return [commonest.get(kind, commonest[""]) for kind in held_out.kinds]


def _in_one_pass(model: CausalModel, given: Tensor, questions: Questions, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of several questions about each image, side by side; b n, b p -> b p t v, and the rows."""
    device, inputs = _device(model), questions.inputs[rows]
    t = int((questions.targets[rows] != PADDING).sum(2).max())
    words = rearrange(inputs[..., :t], "b p t -> b (p t)").to(device)
    blocks = torch.arange(rows.shape[1], device=device).repeat_interleave(t).expand(len(rows), -1)
    logits = model(given.to(device), words, blocks)
    return rearrange(logits, "b (p t) v -> b p t v", t=t), rows


def _device(model: CausalModel) -> torch.device:
    return next(model.parameters()).device


def _texts(images: TaskImages) -> list[str]:
    return [text for of_image in images.questions for item in of_image for text in (item["question"], item["answer"])]


def _measured(right: Tensor, questions: Questions, n: int) -> Condition:
    scores = answer_scores(right, common_kinds(questions.kinds), questions.image, n)
    return Condition(scores.values, scores.per_image)


def _samples(
    model: CausalModel, given: Tensor, questions: Questions, images: TaskImages, vocabulary: Vocabulary
) -> list[Sample]:
    """One question about each of the first images: another place of their lists each, to show several kinds."""
    rows, first = list[int](), questions.image.unique()[:SAMPLES].tolist()
    for turn, i in enumerate(first):
        its_rows = [row for row in questions.of_image[i].tolist() if row < len(questions.asked)]
        rows.append(its_rows[turn % len(its_rows)])
    asked = [questions.asked[row] for row in rows]
    written = answers(model, given[first], [item["question"] for item in asked], vocabulary)
    return [
        Sample(item["question"], (images.images[i],), text, item["answer"])
        for i, item, text in zip(first, asked, written, strict=True)
    ]


def _protocol(
    data: TaskData, settings: TaskSettings, vocabulary: Vocabulary, train: Questions, held_out: Questions
) -> dict[str, Any]:
    parts = {"train": (data.train, train), "held_out": (data.held_out, held_out)}
    return {
        "images": {name: len(images) for name, (images, _) in parts.items()},
        "images_without_questions": {
            name: len(images) - len(questions.image.unique()) for name, (images, questions) in parts.items()
        },
        "questions": {name: len(questions.asked) for name, (_, questions) in parts.items()},
        "unknown_words": {name: unknown_share(_texts(images), vocabulary) for name, (images, _) in parts.items()},
        "vocabulary": len(vocabulary),
        "steps": settings.fit.steps,
        "batch_size": settings.fit.batch_size,
        "questions_per_image_and_step": PER_IMAGE,
    }
