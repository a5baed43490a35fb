"""The model that writes captions: the words it knows, the captions as numbers, and its training.

Answering questions starts from it, as a model that can name what an image shows learns sooner what is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tavq_plugin.tasks.causal_model import NOT_TRAINED, CausalModel, word_loss
from tavq_plugin.tasks.fit_reader import fit_reader
from tavq_plugin.tasks.reading_conditions import ReadingCondition
from tavq_plugin.tasks.task import TaskSettings
from tavq_plugin.tasks.task_data import TaskData, TaskImages
from tavq_plugin.tasks.vocabulary import END, PADDING, START, UNKNOWN, Vocabulary, padded, words_of

CAPTIONER = "captioning"  # folder of its models
LONGEST = 127  # words of a caption; the rest is cut


class ReaderWords(NamedTuple):
    """The words that a model can read and write, and how long its texts are."""

    vocabulary: Vocabulary  # of the first captions, the questions and the answers of the training images
    longest: int  # words of the longest text of both splits, with its start and end


class CaptionRows(NamedTuple):
    """The first caption of the images that have one, as numbers."""

    image: Tensor  # m int64: positions of these images in the split
    words: Tensor  # m t: START, the words, END, padding
    cut: int  # captions that were longer than LONGEST

    @property
    def inputs(self) -> Tensor:
        """What the model reads; m t-1."""
        return self.words[:, :-1]

    @property
    def targets(self) -> Tensor:
        """The word after each, `NOT_TRAINED` where there is none or it is unknown; m t-1."""
        after = self.words[:, 1:]
        return after.masked_fill((after == PADDING) | (after == UNKNOWN), NOT_TRAINED)


def reader_words(data: TaskData) -> ReaderWords:
    """One vocabulary for captions and questions, so that one model can learn both."""
    texts = [*first_captions(data.train), *(text for item in _asked(data.train) for text in item)]
    longest = 0
    for images in (data.train, data.held_out):
        captions = [min(len(words_of(text)), LONGEST) for text in first_captions(images)]
        pairs = [len(words_of(question)) + len(words_of(answer)) for question, answer in _asked(images)]
        longest = max([longest, *captions, *pairs])
    return ReaderWords(Vocabulary.of(texts), longest + 2)


def with_caption(images: TaskImages) -> list[int]:
    """The images whose first caption has a word."""
    return [i for i, texts in enumerate(images.captions) if texts and words_of(texts[0])]


def first_captions(images: TaskImages) -> list[str]:
    """The first caption of each image that has one."""
    return [images.captions[i][0] for i in with_caption(images)]


def caption_rows(images: TaskImages, vocabulary: Vocabulary) -> CaptionRows:
    """The captions as numbers; what is longer than `LONGEST` is cut, and counted."""
    numbers = [vocabulary.numbers(text) for text in first_captions(images)]
    cut = sum(len(row) > LONGEST for row in numbers)
    words = padded([[START, *row[:LONGEST], *([END] if len(row) <= LONGEST else [])] for row in numbers])
    return CaptionRows(torch.tensor(with_caption(images), dtype=torch.long), words, cut)


def fit_captioner(
    condition: ReadingCondition,
    rows: CaptionRows,
    words: ReaderWords,
    settings: TaskSettings,
    progress: Callable[[int, int], None],
) -> CausalModel:
    """The captioner of a condition: trained, or loaded if it was.

    Args:
        condition: One of `reading_conditions(CAPTIONER, …)`.
        rows: The captions of the training images.
        words: The words that it knows.
        settings: Its size, and how it is trained.
        progress: Called with the steps that are done, and all steps.
    """

    def loss_of(net: CausalModel, given: Tensor, chosen: Tensor, draw: torch.Generator) -> Tensor:
        device = next(net.parameters()).device
        inputs, targets = rows.inputs[chosen], rows.targets[chosen]
        t = int((inputs != PADDING).sum(1).max())
        logits = net(given[rows.image[chosen]].to(device), inputs[:, :t].to(device))
        return word_loss(logits, targets[:, :t].to(device))

    return fit_reader(
        condition, loss_of, vocabulary=words.vocabulary, longest=words.longest, n=len(rows.image), settings=settings,
        made_from={"task": CAPTIONER}, progress=progress,
    )  # fmt: skip


def _asked(images: TaskImages) -> list[tuple[str, str]]:
    return [(item["question"], item["answer"]) for of_image in images.questions for item in of_image]
