"""Scores of answers to questions about images: the share of right ones, by kind of question, and WUPS."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tavq_plugin.tasks.vocabulary import words_of

OF_SCENES = {  # the questions on drawn scenes: pattern → kind; the first that fits
    r"what colour is the background": "background", r"how many shapes": "count", r"what colour is the": "colour",
    r"how large is the": "size", r"what is the surface": "texture", r"where is the .*seen from": "relation",
    r"where is the": "place",
}  # fmt: skip
FEWEST = 10  # kinds with fewer held-out questions are counted together
OTHER = "other"
NO_WORDNET = "WordNet is not installed: pip install nltk, then python -m nltk.downloader wordnet"
WUPS_AT = 0.9  # a word that is less like the true one than this counts a tenth


def kind_of(question: Mapping[str, str]) -> str:
    """The kind of a question: its own "kind", that of the drawn scenes, or its first two words.

    >>> kind_of({"question": "How large is the red star?"}), kind_of({"question": "What is on the desk?"})
    ('size', 'what is')
    """
    if question.get("kind"):
        return question["kind"]
    text = question["question"].lower()
    found = next((kind for pattern, kind in OF_SCENES.items() if re.match(pattern, text)), None)
    return found or " ".join(words_of(text)[:2])


def common_kinds(kinds: Sequence[str], *, fewest: int = FEWEST) -> list[str]:
    """The kinds, with `OTHER` in place of those of fewer than `fewest` questions.

    >>> common_kinds(["size", "size", "why is"], fewest=2)
    ['size', 'size', 'other']
    """
    counts = Counter(kinds)
    return [kind if counts[kind] >= fewest else OTHER for kind in kinds]


class AnswerScores(NamedTuple):
    """Shares of right answers."""

    values: Mapping[str, float]
    per_image: Mapping[str, Tensor]  # n each; NaN for an image without questions


def answer_scores(right: Tensor, kinds: Sequence[str], image: Tensor, n: int) -> AnswerScores:
    """The share of right answers per image and by kind of question; q bool, q kinds, q int64 image of each.

    `exact_match` is the mean over images of an image's share. `answer_accuracy` is the mean over kinds of a kind's
    share; its values per image have that mean, so those of an image may exceed 1.

    >>> scores = answer_scores(torch.tensor([True, False, True]), ["size", "size", "count"], torch.tensor([0, 0, 1]), 2)
    >>> scores.values
    {'exact_match': 0.75, 'answer_accuracy': 0.75, 'accuracy_count': 1.0, 'accuracy_size': 0.5}
    """
    names = sorted(set(kinds))
    kind = torch.tensor([names.index(name) for name in kinds])
    hits, asked = right.double(), torch.bincount(image, minlength=n)
    per_kind = torch.bincount(kind, hits, len(names)) / torch.bincount(kind, minlength=len(names))
    empty = torch.where(asked > 0, 0.0, torch.nan).double()
    weight = (asked > 0).sum() / (len(names) * torch.bincount(kind)[kind])
    per_image = {
        "exact_match": torch.bincount(image, hits, n) / asked.clamp(min=1) + empty,
        "answer_accuracy": torch.bincount(image, hits * weight, n) + empty,
    }
    values = {name: value.nanmean().item() for name, value in per_image.items()}
    values |= {f"accuracy_{name}": share for name, share in zip(names, per_kind.tolist(), strict=True)}
    return AnswerScores(values, per_image)


def wups(answer: str, truth: str, likeness: Callable[[str, str], float], *, at: float = WUPS_AT) -> float:
    """How near an answer is to the true one, 0 to 1 (Malinowski & Fritz 2014); answers are lists with commas.

    Each part counts with the likest part of the other list; a likeness below `at` counts a tenth.
    """
    ours, theirs = ([part.strip().lower() for part in text.split(",") if part.strip()] for text in (answer, truth))
    if not ours or not theirs:
        return float(ours == theirs)

    def covered(first: Sequence[str], second: Sequence[str]) -> float:
        product = 1.0
        for one in first:
            best = max(likeness(one, other) for other in second)
            product *= best if best >= at else best / 10
        return product

    return min(covered(ours, theirs), covered(theirs, ours))


def wordnet_likeness() -> Callable[[str, str], float] | None:
    """Wu and Palmer's likeness of two words in WordNet, 1 for the same word; None without nltk and its WordNet."""
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        return None

    def likeness(one: str, other: str) -> float:
        if one == other:
            return 1.0
        senses = [wordnet.synsets(word.replace(" ", "_")) for word in (one, other)]
        return max((a.wup_similarity(b) or 0.0 for a in senses[0] for b in senses[1]), default=0.0)

    return likeness
