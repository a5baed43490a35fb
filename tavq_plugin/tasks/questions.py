"""The questions about the images of a split, as text and as numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tavq_plugin.tasks.answer_scores import kind_of
from tavq_plugin.tasks.task_data import TaskImages
from tavq_plugin.tasks.vocabulary import END, PADDING, START, Vocabulary, padded

PER_IMAGE = 8  # questions of an image in one step, all in one pass


@dataclass(frozen=True)
class Questions:
    """The questions of one split in one list, as text and as numbers."""

    image: Tensor  #: q int64: the image of each
    asked: Sequence[Mapping[str, str]]  #: q
    kinds: Sequence[str]  #: q
    words: Tensor  #: q + 1, t: the question, START, the answer, END, padding; the last row is padding alone
    is_answer: Tensor  #: q + 1, t bool: words of the answer and END
    of_image: Tensor  #: n most, int64: rows of each image's questions, then q

    @property
    def inputs(self) -> Tensor:
        """What the model reads; q + 1, t-1."""
        return self.words[:, :-1]

    @property
    def targets(self) -> Tensor:
        """The word after each; q + 1, t-1."""
        return self.words[:, 1:]


def questions_of(images: TaskImages, vocabulary: Vocabulary) -> Questions:
    """The questions of all images, as numbers. ValueError for an empty question or answer."""
    asked, image, rows, starts = list[Mapping[str, str]](), list[int](), list[list[int]](), list[int]()
    for i, its_questions in enumerate(images.questions):
        for item in its_questions:
            question, answer = prompt_of(item["question"], vocabulary), vocabulary.numbers(item["answer"])
            if not answer:
                raise ValueError(f"image {i}: the answer to {item['question']!r} has no words; leave the question out")
            asked.append(item)
            image.append(i)
            rows.append([*question, *answer, END])
            starts.append(len(question))
    words = padded([*rows, []])
    places = torch.arange(words.shape[1])
    is_answer = (places >= torch.tensor([*starts, words.shape[1]])[:, None]) & (words != PADDING)
    of_each = defaultdict(list)
    for row, i in enumerate(image):
        of_each[i].append(row)
    most = max((len(of_each[i]) for i in of_each), default=0)
    of_image = torch.full((len(images), most), len(asked))
    for i, its_rows in of_each.items():
        of_image[i, : len(its_rows)] = torch.tensor(its_rows)
    return Questions(torch.tensor(image), asked, [kind_of(item) for item in asked], words, is_answer, of_image)


def prompt_of(question: str, vocabulary: Vocabulary) -> list[int]:
    """A question as the model reads it: its words, then START. ValueError for an empty one.

    >>> prompt_of("", Vocabulary(()))
    Traceback (most recent call last):
    ValueError: the question '' has no words; give a question such as "How many shapes are there?"
    """
    numbers = vocabulary.numbers(question)
    if not numbers:
        raise ValueError(
            f'the question {question!r} has no words; give a question such as "How many shapes are there?"'
        )
    return [*numbers, START]


def drawn_questions(questions: Questions, images: Tensor, draw: torch.Generator) -> Tensor:
    """Up to PER_IMAGE different questions of each image; b int64 -> b p int64, rows, or padding where none is left."""
    rows = questions.of_image[images]
    order = torch.rand(rows.shape, generator=draw).masked_fill(rows == len(questions.asked), 2.0).argsort(1)
    return rows.gather(1, order[:, :PER_IMAGE])
