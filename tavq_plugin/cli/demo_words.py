"""Where the transport places words that name one object: the share of a word's mass inside that object's box."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.evaluation.plan_maps import plan_maps
from tavq_plugin.evaluation.probes.word_in_box import words_at_places
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float

BATCH = 50  # images
RESAMPLES = 1000  # of the images, for the interval of the ratio


class NamingWord(NamedTuple):
    """A word of a text that names exactly one object of its image."""

    word: str
    unit: int  # its place among the text's units
    box: Mapping[str, Any]  # of the object: {"phrase", "box"}


class WordPlan(NamedTuple):
    """Where the transport places the words of one image's text, at level 1."""

    units: list[str]
    mass: Tensor  # m h w


class WordMass(NamedTuple):
    """Sums over the naming words of each held-out image; 0 for an image without such a word."""

    inside: Tensor  # n, share of the word's mass inside its object's box
    area: Tensor  # n, share of the grid's places inside that box
    words: Tensor  # n, number of words


def naming_words(units: Sequence[str], boxes: Sequence[Mapping[str, Any]]) -> list[NamingWord]:
    """The words that stand in the phrase of exactly one box; nouns first, as they end a phrase.

    >>> boxes = [{"phrase": "large red star", "box": [0, 0, 1, 1]}, {"phrase": "blue star", "box": [0, 0, 1, 1]}]
    >>> [found.word for found in naming_words(["two", "star", "large", "red", "blue"], boxes)]
    ['red', 'blue', 'large']
    """
    phrases = [list(dict.fromkeys(re.findall(r"\w+", str(box["phrase"]).lower()))) for box in boxes]
    count = Counter(word for phrase in phrases for word in phrase)
    place = {unit.lower(): i for i, unit in enumerate(units)}
    found = [
        (len(phrase) - i, NamingWord(word, place[word], box))
        for phrase, box in zip(phrases, boxes, strict=True)
        for i, word in enumerate(phrase)
        if count[word] == 1 and word in place
    ]
    return [named for _, named in sorted(found, key=lambda pair: pair[0])]


@torch.no_grad()
def word_plans(tokenizer: Tokenizer, align: TextAlignment, corpus: Corpus, rows: Sequence[int]) -> Iterator[WordPlan]:
    """The plan of level 1 for each of some rows, in their order."""
    granularity = align.levels[0]
    for start in range(0, len(rows), BATCH):
        part = list(rows[start : start + BATCH])
        fine = tokenizer.encode(to_float(corpus.images[part])).levels[0].quantized
        maps = plan_maps(align, fine, corpus.store.batch(rows=part)[granularity], 0)
        for row, mass in zip(part, maps, strict=True):
            units = corpus.store.units(row, granularity)
            yield WordPlan(units, mass[: len(units)])


def word_mass(tokenizer: Tokenizer, align: TextAlignment, corpus: Corpus) -> WordMass | None:
    """The mass of naming words inside their object, for each held-out image; None if the corpus has no boxes."""
    if not len(corpus.boxes):
        return None
    rows = list(corpus.held_out_rows)
    sums = torch.zeros(3, len(rows), dtype=torch.float64)
    for i, (row, plan) in enumerate(zip(rows, word_plans(tokenizer, align, corpus, rows), strict=True)):
        for named in naming_words(plan.units, corpus.boxes[row]):
            share, area = share_inside(named, plan.mass)
            if area:  # a box may hold no place's centre
                sums[:, i] += torch.tensor([share, area, 1.0], dtype=torch.float64)
    return WordMass(*sums)


def mass_figures(found: WordMass | None) -> dict[str, Any] | None:
    """The means over all words, in percent, and their ratio with a 95 % interval over the images; None without words.

    The interval is the bootstrap's, over the images that have such words.
    """
    if found is None or not found.words.sum():
        return None
    found = WordMass(*(part[found.words > 0] for part in found))
    drawn = torch.randint(len(found.words), (RESAMPLES, len(found.words)), generator=torch.Generator().manual_seed(0))
    ratios = found.inside[drawn].sum(1) / found.area[drawn].sum(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    inside, area, words = (part.sum().item() for part in found)
    return {
        "inside": 100 * inside / words,
        "area": 100 * area / words,
        "times": inside / area,
        "times_interval": [low, high],
        "words": int(words),
        "images": len(found.words),
    }


def share_inside(named: NamingWord, mass: Tensor) -> tuple[float, float]:
    """The share of a word's mass inside its object's box, and the box's share of the places; m h w."""
    h, w = mass.shape[1:]
    inside = rearrange(words_at_places([named.box], [named.word], h, w), "(h w) 1 -> h w", h=h)  # their centres are
    own = mass[named.unit].double()
    return ((own * inside).sum() / own.sum().clamp(min=1e-12)).item(), inside.double().mean().item()
