"""The words of every code of a run, by its held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tavq_plugin.evaluation.encoded_images import codebook_sizes
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.text.splitter import Splitter
from tavq_plugin.use.code_words import CodeWords, code_presence, code_words

LEAST_TEXTS = 2  # that hold a word; a word of one text cannot be told from chance


class WordOfCode(NamedTuple):
    """A code and a word, with what the held-out images say of the two."""

    level: int  # from 1
    code: int
    word: str
    information: float  # positive pointwise mutual information, in nats
    images: int  # that hold the code and whose text holds the word
    chance: float  # the information after the texts are dealt to other images at random: the mean
    chance_high: float  # and its 95 % quantile
    above_chance: bool


class RunWords(NamedTuple):
    """The evidence for one level."""

    level: int
    vocabulary: tuple[str, ...]
    evidence: CodeWords

    def of_code(self, code: int, top: int = 10) -> list[WordOfCode]:
        """The words of a code, best first. ValueError if there is no such code."""
        codes = len(self.evidence.code_images)
        if not 0 <= code < codes:
            raise ValueError(f"code {code} is none of level {self.level}: give a number from 0 to {codes - 1}")
        found = self.evidence.top_words(code, top)
        return [WordOfCode(self.level, code, self.vocabulary[one.number], *one[1:]) for one in found]

    def of_word(self, word: str, top: int = 10) -> list[WordOfCode]:
        """The codes of a word, best first. ValueError if fewer than two held-out texts have the word."""
        lower = word.strip().lower()
        if lower not in self.vocabulary:
            raise ValueError(
                f"fewer than {LEAST_TEXTS} held-out texts have the word {word!r} ({len(self.vocabulary)} words are "
                f"known, such as {', '.join(self.vocabulary[:5])}): give one of these, or more data"
            )
        found = self.evidence.top_codes(self.vocabulary.index(lower), top)
        return [WordOfCode(self.level, one.number, lower, *one[1:]) for one in found]


def run_words(tokenizer: Tokenizer, images: Tensor, texts: Sequence[str], *, batch_size: int = 50) -> list[RunWords]:
    """The evidence for every level, from images n 3 r r uint8 and their texts.

    Raises ValueError if no word stands in at least two texts.
    """
    vocabulary, words = presence_of_words(texts)
    if not vocabulary:
        raise ValueError(f"no word stands in {LEAST_TEXTS} of the {len(texts)} texts: give more images, with texts")
    indices: list[list[Tensor]] = []
    with eval_without_trace(tokenizer):
        for part in images.split(batch_size):
            codes = tokenizer.encode(to_float(part.to(next(tokenizer.parameters()).device)))
            indices.append([level.indices.flatten(1).cpu() for level in codes.levels])
    levels = [torch.cat(level) for level in zip(*indices, strict=True)]
    sizes = codebook_sizes(tokenizer, max(int(level.max()) for level in levels))
    found = []
    for number, (level, size) in enumerate(zip(levels, sizes, strict=True), 1):
        presence = code_presence(level, max(size, int(level.max()) + 1))
        found.append(RunWords(number, vocabulary, code_words(presence, words)))
    return found


def presence_of_words(texts: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The words that stand in at least two texts, most frequent first, and which text has which; n v bool.

    >>> presence_of_words(["A red car.", "A red bus.", ""])
    (('red',), tensor([[ True],
            [ True],
            [False]]))
    """
    splitter = Splitter()
    found = [frozenset(splitter(text).texts("word")) for text in texts]
    counts: dict[str, int] = {}
    for words in found:
        for word in sorted(words):
            counts[word] = counts.get(word, 0) + 1
    vocabulary = tuple(sorted((word for word, n in counts.items() if n >= LEAST_TEXTS), key=lambda w: (-counts[w], w)))
    place = {word: i for i, word in enumerate(vocabulary)}
    presence = torch.zeros(len(texts), len(vocabulary), dtype=torch.bool)
    for row, words in enumerate(found):
        presence[row, [place[word] for word in words if word in place]] = True
    return vocabulary, presence
