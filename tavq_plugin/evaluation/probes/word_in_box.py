"""A word in its box: a linear probe predicts words from each place's code, and boxes say where the words are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from tavq_plugin.evaluation.metrics.average_precision import WordRanking
from tavq_plugin.evaluation.metrics.permuted_texts import PERMUTATIONS, Chance, chance_of
from tavq_plugin.evaluation.probes.ridge import PENALTIES, choose_ridges

Boxes = Sequence[Mapping[str, Any]]  # of one image: {"phrase": str, "box": [x0, y0, x1, y1] from 0 to 1}


class WordsInBoxes(NamedTuple):
    """Mean average precision of words over the places of held-out images, in percent."""

    map: float
    chance: Chance  # where boxes are dealt at random among the images
    per_image: Tensor  # n; their mean is `map`; NaN for an image without boxes


def word_in_box(
    train_places: Tensor,
    train_boxes: Sequence[Boxes],
    held_out_places: Tensor,
    held_out_boxes: Sequence[Boxes],
    words: Sequence[str],
    *,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> WordsInBoxes:
    """Fit a ridge from codes to words, the same at every place, and rank held-out places by it; n c h w, m c h w.

    A place has a word if its centre lies in a box whose phrase has the word. Images without boxes are left out. A
    word's average precision is over all places of all held-out images, with ties shared as in scikit-learn; words in no
    held-out box are left out of the mean. For chance, images swap boxes at random and the scores stay.

    Args:
        train_places: Codes of the training images, n c h w.
        train_boxes: Boxes of each training image.
        held_out_places: Codes of the held-out images, m c h w.
        held_out_boxes: Boxes of each held-out image.
        words: The words that are predicted, such as `boxed_words(train_boxes)`.
        penalties: Ridge penalties to choose from. Default: `PENALTIES`.
        permutations: Times that boxes are dealt, at least 2. Default: `PERMUTATIONS`.
        seed: Of the dealing. Default: 0.

    Raises:
        ValueError: Fewer than two images of a split have boxes, no word is in a held-out box, a box is not four
            numbers, or the numbers of images and of lists of boxes differ.
        PenaltyAtEdge: The codes do not predict the words at any penalty.
    """
    if not words:
        raise ValueError("no word is in enough training boxes: give words, or images with more boxes")
    (train, train_present), (held_out, held_out_present) = (
        _boxed(places, boxes, words, side)
        for places, boxes, side in (
            (train_places, train_boxes, "training"),
            (held_out_places, held_out_boxes, "held-out"),
        )
    )
    if not held_out_present.any():
        raise ValueError(f"no place of a held-out image is in a box of one of the {len(words)} words: give more images")
    points = rearrange(train_places[train], "n c h w -> (n h w) c")
    (ridge,) = choose_ridges(points, [rearrange(train_present, "n p w -> (n p) w")], penalties=penalties)
    ranking = WordRanking(ridge.predict(rearrange(held_out_places[held_out], "n c h w -> (n h w) c")))

    def parts(present: Tensor) -> Tensor:
        return ranking.average_precision(rearrange(present, "n p w -> (n p) w"))

    of_images = rearrange(parts(held_out_present), "(n p) -> n p", n=len(held_out)).mean(1)
    per_image = torch.full((len(held_out_boxes),), torch.nan, dtype=torch.float64).index_copy(0, held_out, of_images)
    chance = chance_of(
        lambda order: parts(held_out_present[order]).mean().item(), len(held_out), permutations=permutations, seed=seed
    )
    return WordsInBoxes(of_images.mean().item(), chance, per_image)


def boxed_words(boxes: Sequence[Boxes], *, at_least: int = 5, most: int = 100) -> list[str]:
    """Words that are in the phrases of boxes of at least so many images, most frequent first, at most `most`.

    >>> boxed_words([[{"phrase": "Brown dog"}, {"phrase": "dog"}], [{"phrase": "dog"}, {"phrase": "cat"}]], at_least=2)
    ['dog']
    """
    count = Counter(word for own in boxes for word in set().union(*map(_words, own)))
    frequent = sorted((word for word, n in count.items() if n >= at_least), key=lambda word: (-count[word], word))
    return frequent[:most]


def words_at_places(boxes: Boxes, words: Sequence[str], h: int, w: int) -> Tensor:
    """Which places of a grid have their centre in a box of each word; -> (h w) words bool.

    Raises ValueError for a box that is not four numbers x0 ≤ x1, y0 ≤ y1.

    >>> words_at_places([{"phrase": "dog", "box": [0.0, 0.0, 0.5, 1.0]}], ["dog", "cat"], 1, 2).tolist()
    [[True, False], [False, False]]
    """
    number = {word: i for i, word in enumerate(words)}
    present = torch.zeros(h, w, len(words), dtype=torch.bool)
    ys, xs = ((torch.arange(size, dtype=torch.float64) + 0.5) / size for size in (h, w))
    for box in boxes:
        x0, y0, x1, y1 = _corners(box)
        inside = ((ys >= y0) & (ys <= y1))[:, None] & (xs >= x0) & (xs <= x1)
        for word in _words(box) & number.keys():
            present[..., number[word]] |= inside
    return rearrange(present, "h w k -> (h w) k")


def _boxed(places: Tensor, boxes: Sequence[Boxes], words: Sequence[str], side: str) -> tuple[Tensor, Tensor]:
    """Positions of the images with boxes, k, and the words of their places, k (h w) words bool."""
    if places.ndim != 4 or len(places) != len(boxes):
        raise ValueError(
            f"{side} places are {tuple(places.shape)} for {len(boxes)} lists of boxes: give n c h w, one list per image"
        )
    images = [i for i, own in enumerate(boxes) if own]
    if len(images) < 2:
        raise ValueError(f"{len(images)} of {len(boxes)} {side} images have boxes: at least 2 are needed")
    present = [words_at_places(boxes[i], words, *places.shape[2:]) for i in images]
    return torch.tensor(images), torch.stack(present)


def _words(box: Mapping[str, Any]) -> set[str]:
    """The distinct words of a box's phrase, in lower case."""
    return set(re.findall(r"\w+", str(box["phrase"]).lower()))


def _corners(box: Mapping[str, Any]) -> tuple[float, float, float, float]:
    corners = box.get("box")
    if isinstance(corners, Sequence) and len(corners) == 4:
        x0, y0, x1, y1 = (float(corner) for corner in corners)
        if x0 <= x1 and y0 <= y1:
            return x0, y0, x1, y1
    raise ValueError(
        f"the box of {box.get('phrase')!r} is {corners}: give [x0, y0, x1, y1] from 0 to 1, x0 ≤ x1, y0 ≤ y1"
    )
