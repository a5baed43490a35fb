"""The phrases that grounding asks for: each names one object of its image, and has one box."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tavq_plugin.tasks.boxes import box_inside
from tavq_plugin.tasks.grounding_head import NO_WORD
from tavq_plugin.tasks.task_data import TaskImages


def words_of(phrase: str) -> list[str]:
    """The words of a phrase in lower case, in their order.

    >>> words_of("A large, RED star")
    ['a', 'large', 'red', 'star']
    """
    return re.findall(r"\w+", phrase.lower())


@dataclass(frozen=True)
class Phrases:
    """k phrases with the image and the box of each."""

    texts: Sequence[str]
    images: Tensor  #: k int64, row of each phrase's image
    boxes: Tensor  #: k 4, x0, y0, x1, y1 as shares of the picture
    n_images: int

    def __len__(self) -> int:
        return len(self.texts)

    def per_image(self, values: Tensor) -> Tensor:
        """The mean of each image's phrases; k -> n float64, NaN for an image without phrases."""
        sums, counts = (torch.zeros(self.n_images, dtype=torch.float64) for _ in range(2))
        sums.index_add_(0, self.images, values.double())
        counts.index_add_(0, self.images, torch.ones_like(values, dtype=torch.float64))
        return sums / counts  # 0 / 0 is NaN

    def of_images(self, n: int) -> Phrases:
        """The phrases of the first n images."""
        kept = (self.images < n).nonzero().flatten()
        return Phrases(
            [self.texts[i] for i in kept.tolist()], self.images[kept], self.boxes[kept], min(n, self.n_images)
        )


def unique_phrases(images: TaskImages) -> Phrases:
    """The phrases of a split that name one object alone and have a word.

    Raises ValueError if a box lies outside its picture or has no area.
    """
    texts, rows, boxes = [], [], []
    for row, own in enumerate(images.boxes):
        for annotated in own:
            box = box_inside(annotated["box"], of=f"the box of {annotated['phrase']!r} of image {row}")
            if annotated["unique"] and words_of(annotated["phrase"]):
                texts.append(annotated["phrase"])
                rows.append(row)
                boxes.append(box)
    return Phrases(texts, torch.tensor(rows, dtype=torch.long), torch.tensor(boxes).view(-1, 4), len(images))


def word_rows(texts: Sequence[str], vocabulary: Sequence[str], longest: int) -> Tensor:
    """The vocabulary's rows of each phrase's words, at most `longest` of them; k m int64, padded with `NO_WORD`.

    Words that are not in the vocabulary are left out.

    >>> word_rows(["red star", "star"], ["star", "red"], 4).tolist()
    [[1, 0], [0, -1]]
    """
    number = {word: i for i, word in enumerate(vocabulary)}
    rows = [[number[word] for word in words_of(text) if word in number][:longest] for text in texts]
    widest = max(1, *map(len, rows)) if rows else 1
    return torch.tensor([row + [NO_WORD] * (widest - len(row)) for row in rows], dtype=torch.long).view(-1, widest)
