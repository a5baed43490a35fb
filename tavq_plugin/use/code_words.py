"""Which words stand in the texts of the images that hold a code, with what chance alone gives."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from tavq_plugin.evaluation.word_cooccurrence import information_of_counts

HIGH = 0.95  # the quantile of chance that evidence must exceed
AT_ONCE = 1_000_000  # pairs of a code and a word in a block


class Evidence(NamedTuple):
    """What the images say of one code and one word."""

    number: int  # of the word, for words of a code; of the code, for codes of a word
    information: float  # positive pointwise mutual information, in nats
    images: int  # that hold the code and whose text holds the word
    chance: float  # the information after the texts were dealt to other images at random: the mean
    chance_high: float  # and its 95 % quantile
    above_chance: bool


@dataclass(frozen=True)
class CodeWords:
    """The evidence for every code and word over n images.

    A pair is above chance if its information is above the 95 % quantile of that pair after the texts are dealt to
    other images, and if its likelihood ratio is above the 95 % quantile of the code's best word there. Without the
    second condition, the first would hold for one word in twenty by chance, and for any rare word that meets a rare
    code once.
    """

    images: int
    code_images: Tensor  #: k, int64: images that hold the code
    word_images: Tensor  #: v, int64: texts that hold the word
    together: Tensor  #: k v, int64: images that hold both
    information: Tensor  #: k v, float32: positive pointwise mutual information, in nats
    chance: Tensor  #: k v, float32: its mean over the shuffles
    chance_high: Tensor  #: k v, float32: its 95 % quantile over the shuffles
    above_chance: Tensor  #: k v, bool

    def top_words(self, code: int, top: int = 10) -> list[Evidence]:
        """The words of a code: those above chance first, then by information, then by images; at least one image."""
        return self._ranked(code, slice(None), top)

    def top_codes(self, word: int, top: int = 10) -> list[Evidence]:
        """The codes of a word, in the same order."""
        return self._ranked(slice(None), word, top)

    def _ranked(self, code: int | slice, word: int | slice, top: int) -> list[Evidence]:
        place = (code, word)
        together, information, above = self.together[place], self.information[place], self.above_chance[place]
        chance, high = self.chance[place], self.chance_high[place]
        order = sorted(
            together.nonzero()[:, 0].tolist(),
            key=lambda i: (not above[i], -float(information[i]), -int(together[i]), i),
        )
        return [
            Evidence(i, float(information[i]), int(together[i]), float(chance[i]), float(high[i]), bool(above[i]))
            for i in order[:top]
        ]


def code_presence(indices: Tensor, size: int) -> Tensor:
    """Which of `size` codes each image has; n h w or n places -> n k bool."""
    presence = torch.zeros(len(indices), size, dtype=torch.bool)
    return presence.scatter_(1, indices.flatten(1), True)


def code_words(presence_of_codes: Tensor, presence_of_words: Tensor, *, shuffles: int = 20, seed: int = 0) -> CodeWords:
    """Pointwise mutual information of "the code is in the image" and "the word is in its text"; n k, n v bool.

    Chance is what remains after the texts are dealt to the images anew, `shuffles` times.

    Raises ValueError for tensors of other shapes, no image, or fewer than 20 shuffles.

    >>> import torch
    >>> images = torch.arange(40) % 2 == 0
    >>> found = code_words(torch.stack([images, ~images], 1), torch.stack([images, images | True], 1))
    >>> [(word.number, round(word.information, 2), word.images, word.above_chance) for word in found.top_words(0)]
    [(0, 0.69, 20, True), (1, 0.0, 20, False)]
    """
    codes, words = presence_of_codes, presence_of_words
    if codes.ndim != 2 or words.ndim != 2 or len(codes) != len(words) or not len(codes):
        raise ValueError(
            f"presence_of_codes is {tuple(codes.shape)} and presence_of_words {tuple(words.shape)}: give n k and n v, "
            "one row for each image, and at least one image"
        )
    if shuffles < 20:
        raise ValueError(f"shuffles={shuffles}: give at least 20, for a 95 % quantile")
    n, words = len(codes), words.bool().float()
    generator = torch.Generator().manual_seed(seed)
    dealt = [words[torch.randperm(n, generator=generator)] for _ in range(shuffles)]
    size = max(1, AT_ONCE // max(1, words.shape[1]))
    blocks = [_of_block(block, words, dealt) for block in codes.bool().float().split(size, dim=1)]
    together, information, chance, high, above = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    counts = codes.bool().sum(0), words.sum(0).long()
    return CodeWords(n, *counts, together.long(), information, chance, high, above)


def _of_block(codes: Tensor, words: Tensor, dealt: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images with both, information, its mean and quantile by chance, and what is above chance; n k, n v -> k v."""
    n, of_code, of_word = len(codes), codes.sum(0)[:, None], words.sum(0)
    together = codes.T @ words
    information = information_of_counts(together, of_code, of_word, n)
    ratio = _LikelihoodRatio(of_code, of_word, n)
    mean, best = torch.zeros_like(information), []
    greatest: list[Tensor] = []
    kept = len(dealt) - ceil(HIGH * len(dealt)) + 1  # the quantile is the least of so many greatest values
    for shuffled in dealt:
        shared = codes.T @ shuffled
        mean += information_of_counts(shared, of_code, of_word, n) / len(dealt)
        best.append(ratio(shared).amax(1) if words.shape[1] else mean.new_zeros(len(mean)))
        greatest = _greatest([*greatest, shared], kept)
    # The number of images of a code and of a word stay as they are, so information rises with the shared images alone.
    high = information_of_counts(greatest[-1], of_code, of_word, n)
    bar = torch.stack(best).topk(kept, dim=0).values[-1][:, None]
    return together, information, mean, high, (information > high) & (ratio(together) > bar)


def _greatest(values: list[Tensor], kept: int) -> list[Tensor]:
    """The greatest values, place by place and in falling order; the last of `values` is new, the others are sorted."""
    *former, new = values
    found = []
    for value in former:
        found.append(torch.maximum(value, new))
        new = torch.minimum(value, new)
    return [*found, new][:kept]


class _LikelihoodRatio:
    """Dunning's likelihood ratio, by a table of x log x for the counts 0 … n."""

    def __init__(self, of_code: Tensor, of_word: Tensor, n: int) -> None:
        counts = torch.arange(n + 1, dtype=torch.double)
        self.table = torch.xlogy(counts, counts)
        self.of_code, self.of_word, self.n = of_code.int(), of_word.int(), n
        alone = [self.table[count] for count in (self.of_code, self.of_word, n - self.of_code, n - self.of_word)]
        self.alone = self.table[n] - alone[0] - alone[1] - alone[2] - alone[3]
        self.expected = self.of_code.double() * self.of_word / n

    def __call__(self, together: Tensor) -> Tensor:
        """Of pairs that share so many images, 0 where these are fewer than by chance; k v."""
        both = together.int()
        value = self.alone + self.table[both] + self.table[self.of_code - both] + self.table[self.of_word - both]
        value += self.table[self.n - self.of_code - self.of_word + both]
        return torch.where(both > self.expected, 2 * value, 0.0)
