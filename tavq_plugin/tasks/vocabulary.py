"""Texts as the numbers of their words and back; the vocabulary is that of the training texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PADDING, START, END, UNKNOWN = range(4)  # `START` stands where the model begins to write
SPECIAL = ("<padding>", "<start>", "<end>", "<unknown>")
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
MOST_WORDS = 5000


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, in lower case.

    >>> words_of("A man's T-shirt is red.")
    ['a', "man's", 't-shirt', 'is', 'red', '.']
    """
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model can read and write, the commonest first; a word's number is its place after `SPECIAL`.

    >>> known = Vocabulary.of(["a red circle", "a blue circle"])
    >>> known.words
    ('a', 'circle', 'blue', 'red')
    >>> known.numbers("a green circle."), known.text([4, 6, 5, 2])
    ([4, 3, 5, 3], 'a blue circle')
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], *, at_most: int = MOST_WORDS) -> Vocabulary:
        """The commonest words of these texts; words that are equally common are sorted by the alphabet."""
        counts = Counter(word for text in texts for word in words_of(text))
        return cls(tuple(sorted(counts, key=lambda word: (-counts[word], word))[:at_most]))

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.words)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, len(SPECIAL))}

    def numbers(self, text: str) -> list[int]:
        """The numbers of a text's words; `UNKNOWN` for a word that is not in the vocabulary."""
        return [self._number.get(word, UNKNOWN) for word in words_of(text)]

    def text(self, numbers: Iterable[int]) -> str:
        """The words up to the first `END`, with spaces where English has them; padding and `START` are left out."""
        words = []
        for number in numbers:
            if number == END:
                break
            if number not in (PADDING, START):
                words.append((*SPECIAL, *self.words)[number])
        return re.sub(r" ([.,;:!?%)])", r"\1", " ".join(words))


def unknown_share(texts: Iterable[str], vocabulary: Vocabulary) -> float:
    """Share of the texts' words that are not in the vocabulary; 0 without any words.

    >>> unknown_share(["a red", "dog cat"], Vocabulary(("a", "red", "dog")))
    0.25
    """
    numbers = [number for text in texts for number in vocabulary.numbers(text)]
    return numbers.count(UNKNOWN) / max(1, len(numbers))


def padded(rows: Sequence[Sequence[int]], *, left: bool = False) -> Tensor:
    """Rows of numbers with `PADDING` behind them, or before them if `left`; -> b t int64.

    >>> padded([[5], [6, 7]]).tolist(), padded([[5], [6, 7]], left=True).tolist()
    ([[5, 0], [6, 7]], [[0, 5], [6, 7]])
    """
    longest = max((len(row) for row in rows), default=0)
    fills = [[PADDING] * (longest - len(row)) for row in rows]
    lines = [[*fill, *row] if left else [*row, *fill] for row, fill in zip(rows, fills, strict=True)]
    return torch.tensor(lines, dtype=torch.long).view(len(rows), longest)
