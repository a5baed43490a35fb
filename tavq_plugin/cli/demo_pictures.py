"""The pictures of `tavq demo`: reconstructions of every run, and where the transport places words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from tavq_plugin.cli.demo_words import WordPlan, naming_words, share_inside, word_plans
from tavq_plugin.data.corpus import Corpus, ObjectBoxes
from tavq_plugin.evaluation.report.pictures import WordMap, reconstruction_grid, word_regions
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float

RECONSTRUCTED, WITH_WORDS = 8, 4  # held-out images in the two pictures, the first ones
WORDS = 5  # per image
NAMING_TITLE = "share of a word's mass inside the object that it names (of the area); transport at level 1"
PLAIN_TITLE = "where the transport plan places a word (level 1)"


@torch.no_grad()
def draw_reconstructions(tokenizers: Mapping[str, Tokenizer], corpus: Corpus, path: Path) -> None:
    """Draw the first held-out images and what each run's tokenizer makes of them; PNG."""
    images = to_float(corpus.images[list(corpus.held_out_rows)[:RECONSTRUCTED]])
    grid = {"image": images}
    for name, tokenizer in tokenizers.items():
        tokenizer.eval()
        grid[name] = tokenizer.decode(tokenizer.encode(images))
    reconstruction_grid(grid, path)


def draw_words(tokenizer: Tokenizer, align: TextAlignment, corpus: Corpus, path: Path) -> None:
    """Draw the first held-out images and the mass of some words of their texts; PNG.

    With boxes, the words are the first that name one object, nouns first, whatever their mass; without, they are those
    whose mass varies most.
    """
    rows = list(corpus.held_out_rows)[:WITH_WORDS]
    plans = list(word_plans(tokenizer.eval(), align, corpus, rows))
    named = len(corpus.boxes) > 0
    maps = [
        _naming_maps(plan, corpus.boxes[row]) if named else _varying_maps(plan)
        for row, plan in zip(rows, plans, strict=True)
    ]
    word_regions(to_float(corpus.images[rows]), maps, path, title=NAMING_TITLE if named else PLAIN_TITLE)


def _naming_maps(plan: WordPlan, boxes: ObjectBoxes) -> list[WordMap]:
    """The maps of the first words that name one object, with their shares and boxes."""
    found = []
    for named in naming_words(plan.units, boxes)[:WORDS]:
        inside, area = share_inside(named, plan.mass)
        title = f"{named.word}: {100 * inside:.0f} % ({100 * area:.0f} %)"
        found.append(WordMap(title, plan.mass[named.unit], tuple(named.box["box"])))
    return found


def _varying_maps(plan: WordPlan) -> list[WordMap]:
    """The maps of the words whose mass varies most over the image."""
    if not plan.units:
        return []
    flat = plan.mass.flatten(1)
    order = (flat.std(1) / flat.mean(1)).argsort(descending=True)[:WORDS].tolist()
    return [WordMap(plan.units[i], plan.mass[i], None) for i in order]
