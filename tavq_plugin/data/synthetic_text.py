"""What is true of a scene, in words: long text of several sentences, and questions with their answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

NUMBERS = ("no", "one", "two", "three", "four", "five")
CLEAR = 0.2  # difference of two coordinates, as a share of the picture, before a relation is told


def relation(a: Any, b: Any) -> str | None:
    """How a lies to b, by the larger clear difference; None where neither is clear."""
    dx, dy = b.x - a.x, b.y - a.y
    if max(abs(dx), abs(dy)) < CLEAR:
        return None
    if abs(dx) >= abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"


def describe(things: Sequence[Any], background: str, draw: random.Random) -> str:
    """Four to seven sentences: an opening, one a thing, relations, the background."""
    count = NUMBERS[len(things)]
    names = _listed([f"{_article(thing.colour)} {thing.colour} {thing.shape}" for thing in things])
    sentences = [
        draw.choice(
            [
                f"The picture shows {names}.",
                f"There are {count} shapes in this picture, {names}.",
                f"On a {background} background lie {count} shapes, {names}.",
            ]
        )
    ]
    for thing in draw.sample(things, min(3, len(things))):
        texture = "plain" if thing.texture == "plain" else f"{thing.texture}"
        sentences.append(
            draw.choice(
                [
                    f"The {thing.colour} {thing.shape} is {thing.size} and {texture}, at the {thing.place}.",
                    f"A {thing.size} {texture} {thing.shape} in {thing.colour} sits at the {thing.place}.",
                    f"At the {thing.place} is a {thing.size} {thing.colour} {thing.shape} with a {texture} surface.",
                ]
            )
        )
    pairs = [(a, b) for a in things for b in things if a is not b and relation(a, b)]
    for a, b in draw.sample(pairs, min(2, len(pairs))):
        sentences.append(f"The {a.colour} {a.shape} lies {relation(a, b)} the {b.colour} {b.shape}.")
    sentences.append(
        draw.choice([f"The background is {background}.", f"Behind everything is a {background} background."])
    )
    return " ".join(sentences)


def questions(things: Sequence[Any], background: str) -> tuple[dict[str, str], ...]:
    """Questions with one right answer each: colour, size, texture, place, count, relation, background."""
    pairs = [("What colour is the background?", background), ("How many shapes are there?", NUMBERS[len(things)])]
    shapes = Counter(thing.shape for thing in things)
    for thing in things:
        if shapes[thing.shape] == 1:
            pairs.append((f"What colour is the {thing.shape}?", thing.colour))
        name = f"{thing.colour} {thing.shape}"
        pairs.append((f"How large is the {name}?", thing.size))
        pairs.append((f"What is the surface of the {name} like?", thing.texture))
        pairs.append((f"Where is the {name}?", thing.place))
    for a, b in pairwise(things):
        told = relation(a, b)
        if told:
            pairs.append((f"Where is the {a.colour} {a.shape}, seen from the {b.colour} {b.shape}?", told))
    return tuple({"question": question, "answer": answer, "source": "scenes"} for question, answer in pairs)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
