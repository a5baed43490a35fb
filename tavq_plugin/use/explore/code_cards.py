"""A card for each code of a level: its patches, its words with their evidence, its use and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.use.code_words import CodeWords, Evidence, code_presence, code_words
from tavq_plugin.use.explore.run_codes import RunCodes
from tavq_plugin.use.explore.sprites import sprite

CARDS = 1024  # codes with a card at a level, at most: the most used ones
WORDS, CODES = 8, 8  # shown per code and per word
NEIGHBOURS = 6
PATCHES, SIDE = 6, 24  # per code, and pixels of one
SEARCHED = 1000  # words whose codes the page holds, at most: those in most texts


def level_cards(
    codes: RunCodes,
    images: Tensor,
    level: int,
    vocabulary: Sequence[str],
    words: Tensor,
    *,
    others: Sequence[tuple[str, RunCodes]] = (),
) -> dict[str, Any]:
    """The cards of one level, the most used code first, and the codes of each word.

    Args:
        codes: Of the images.
        images: e 3 r r uint8.
        level: From 0.
        vocabulary: The v words, those in most texts first.
        words: Which text has which; e v bool.
        others: Labels and codes of further runs.
    """
    indices, table = codes.indices[level], codes.table[level]
    found = _words_of(indices, words, table)
    counts = torch.bincount(indices.flatten(), minlength=len(found.code_images))
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    chosen = order[:CARDS].tolist()
    patches, number = _patches(images, indices, codes.distances[level], chosen)
    near = _neighbours(table, order)
    matched = [(label, *_matched(indices, other.indices[level], words, other.table[level])) for label, other in others]
    cards, first = [], 0
    for code in chosen:
        card: dict[str, Any] = {"code": code, "share": counts[code].item() / indices.numel()}
        card |= {"images": int(found.code_images[code]), "patches": [first, number[code]]}
        card |= {"words": _evidence(found.top_words(code, WORDS), vocabulary), "neighbours": near.get(code, [])}
        card["also"] = [_other_card(label, code, match, theirs, vocabulary) for label, match, theirs in matched]
        cards.append(card)
        first += number[code]
    return {
        "patches": patches,
        "cards": cards,
        "left_out": len(order) - len(chosen),
        "above_chance": int(found.above_chance.any(1).sum()),
        "words": {
            word: rows
            for i, word in enumerate(vocabulary[:SEARCHED])
            if (rows := _evidence(found.top_codes(i, CODES), None))
        },
        "text_share": {word: int(n) for word, n in zip(vocabulary[:SEARCHED], found.word_images, strict=False)},
    }


def _words_of(indices: Tensor, words: Tensor, table: Tensor | None) -> CodeWords:
    size = int(indices.max()) + 1 if table is None else len(table)
    return code_words(code_presence(indices, size), words)


def _evidence(found: Sequence[Evidence], names: Sequence[str] | None) -> list[list[Any]]:
    """Rows of name (or number), information, images, chance, its 95 % quantile, and 1 if above chance."""
    rows = []
    for one in found:
        name = one.number if names is None else names[one.number]
        figures = [round(value, 3) for value in (one.information, one.chance, one.chance_high)]
        rows.append([name, figures[0], one.images, *figures[1:], int(one.above_chance)])
    return rows


def _neighbours(table: Tensor | None, order: Tensor) -> dict[int, list[int]]:
    """The used codes that are nearest to each used code, by the distance of their vectors."""
    if table is None or len(order) < 2:
        return {}
    vectors = table[order]
    distances = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    near = distances.topk(min(NEIGHBOURS, len(order) - 1), largest=False).indices
    return dict(zip(order.tolist(), order[near].tolist(), strict=True))


def _matched(
    own: Tensor, other: Tensor, words: Tensor, table: Tensor | None
) -> tuple[dict[int, tuple[int, float]], CodeWords | None]:
    """For each own code the other run's code that shares most of its places, and the share; and the words of these.

    The share is that of the places with both codes in those with either; e h w, e h w. Nothing for other grids.
    """
    if own.shape != other.shape:
        return {}, None
    found = _words_of(other, words, table)
    size, theirs = int(own.max()) + 1, len(found.code_images)
    both = torch.bincount(own.flatten() * theirs + other.flatten(), minlength=size * theirs).view(size, theirs)
    either = both.sum(1, keepdim=True) + both.sum(0) - both
    share, match = (both / either.clamp(min=1)).max(1)
    return {code: (int(match[code]), float(share[code])) for code in own.unique().tolist()}, found


def _other_card(
    label: str, code: int, match: dict[int, tuple[int, float]], found: CodeWords | None, vocabulary: Sequence[str]
) -> dict[str, Any]:
    if found is None:
        return {"label": label, "code": None, "overlap": None, "words": []}
    theirs, share = match[code]
    words = _evidence(found.top_words(theirs, WORDS), vocabulary)
    return {"label": label, "code": theirs, "overlap": round(share, 4), "words": words}


def _patches(
    images: Tensor, indices: Tensor, distances: Tensor, chosen: Sequence[int]
) -> tuple[dict[str, Any], dict[int, int]]:
    """The patches of the codes in their order as one sprite, and how many each code has.

    They are of the places whose latent is nearest to the code, one of each image. A patch shows the place in its
    middle with what surrounds it: a quarter of the image's side, or three places if that is more.
    """
    top = top_places(indices, distances, PATCHES)
    side, (h, w) = images.shape[2], indices.shape[1:]
    window = min(side, max(side // 4, 3 * -(-side // max(h, w)), 2))
    cut = list[Tensor]()
    for code in chosen:
        for image, row, column in top[code]:
            y, x = (round((place + 0.5) * side / size - window / 2) for place, size in ((row, h), (column, w)))
            y, x = (min(max(start, 0), side - window) for start in (y, x))
            cut.append(images[image, :, y : y + window, x : x + window])
    made = torch.stack(cut)
    mode = "nearest" if window <= SIDE else "area"
    made = F.interpolate(made.float(), (SIDE, SIDE), mode=mode).round().to(torch.uint8)
    return sprite(made, lossless=False), {code: len(top[code]) for code in chosen}


def top_places(indices: Tensor, distances: Tensor, most: int) -> dict[int, list[tuple[int, int, int]]]:
    """For each code the places of smallest distance, one of each image, nearest first; n h w, n h w.

    >>> indices = torch.tensor([[[0, 0]], [[0, 1]]])
    >>> top_places(indices, torch.tensor([[[0.2, 0.1]], [[0.3, 0.0]]]), 2)
    {0: [(0, 0, 1), (1, 0, 0)], 1: [(1, 0, 1)]}
    """
    h, w = indices.shape[1:]
    code, distance = indices.flatten().numpy(), distances.flatten().numpy()
    image = np.repeat(np.arange(len(indices)), h * w)
    best = np.lexsort((distance, image, code))
    first = np.ones(len(best), dtype=bool)  # of each code and image
    first[1:] = (np.diff(code[best]) != 0) | (np.diff(image[best]) != 0)
    best = best[first]
    best = best[np.lexsort((distance[best], code[best]))]
    found: dict[int, list[tuple[int, int, int]]] = {}
    for place in best.tolist():
        places = found.setdefault(int(code[place]), [])
        if len(places) < most:
            places.append((int(image[place]), place // w % h, place % w))
    return found
