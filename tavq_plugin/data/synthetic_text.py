"""The words of a scene: a long text of several sentences, and questions with their answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

NUMBERS = ("no", "one", "two", "three", "four", "five")
CLEAR = 0.2  # smallest difference of two coordinates, as a share of the picture, at which a relation is named


def relation(a: Any, b: Any) -> str | None:
    """How a lies relative to b, by the larger difference of coordinates; None if both are below `CLEAR`."""
    dx, dy = b.x - a.x, b.y - a.y
    if max(abs(dx), abs(dy)) < CLEAR:
        return None
    if abs(dx) >= abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"


def describe(objects: Sequence[Any], background: str, draw: random.Random) -> str:
    """Four to seven sentences: an opening, one per object, relations, the background."""
    count = NUMBERS[len(objects)]
    names = _listed([f"{_article(item.colour)} {item.colour} {item.shape}" for item in objects])
    sentences = [
        draw.choice(
            [
                f"The picture shows {names}.",
                f"There are {count} shapes in this picture, {names}.",
                f"On a {background} background lie {count} shapes, {names}.",
            ]
        )
    ]
    for item in draw.sample(objects, min(3, len(objects))):
        sentences.append(
            draw.choice(
                [
                    f"The {item.colour} {item.shape} is {item.size} and {item.texture}, at the {item.place}.",
                    f"A {item.size} {item.texture} {item.shape} in {item.colour} sits at the {item.place}.",
                    f"At the {item.place} is a {item.size} {item.colour} {item.shape} with a {item.texture} surface.",
                ]
            )
        )
    pairs = [(a, b) for a in objects for b in objects if a is not b and relation(a, b)]
    for a, b in draw.sample(pairs, min(2, len(pairs))):
        sentences.append(f"The {a.colour} {a.shape} lies {relation(a, b)} the {b.colour} {b.shape}.")
    sentences.append(
        draw.choice([f"The background is {background}.", f"Behind everything is a {background} background."])
    )
    return " ".join(sentences)


def questions(objects: Sequence[Any], background: str) -> tuple[dict[str, str], ...]:
    """Questions with one right answer each, on colour, size, texture, place, count, relation and background."""
    pairs = [("What colour is the background?", background), ("How many shapes are there?", NUMBERS[len(objects)])]
    shapes = Counter(item.shape for item in objects)
    for item in objects:
        if shapes[item.shape] == 1:
            pairs.append((f"What colour is the {item.shape}?", item.colour))
        name = f"{item.colour} {item.shape}"
        pairs.append((f"How large is the {name}?", item.size))
        pairs.append((f"What is the surface of the {name} like?", item.texture))
        pairs.append((f"Where is the {name}?", item.place))
    for a, b in pairwise(objects):
        between = relation(a, b)
        if between:
            pairs.append((f"Where is the {a.colour} {a.shape}, seen from the {b.colour} {b.shape}?", between))
    return tuple({"question": question, "answer": answer, "source": "scenes"} for question, answer in pairs)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
