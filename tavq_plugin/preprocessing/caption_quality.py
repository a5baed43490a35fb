"""Find generated texts that describe nothing: empty texts, refusals, thoughts and endless repetition."""

from __future__ import annotations

import re
import zlib

from tavq_plugin.preprocessing.refusals import is_refusal

_THOUGHT = re.compile(r"</?(?:think|thinking|thought|reasoning)>", re.IGNORECASE)  # of a text that was not cleaned
_MIN_WORDS = 12  # shorter texts may repeat words
_MIN_DISTINCT = 0.5  # share of distinct word triples; joined human captions of one image have 0.8 and more
_MAX_COMPRESSION = 5.0  # zlib shrinks prose of some hundred letters 1.5 to 2.5 times
_MIN_BYTES = 200  # shorter texts are not compressed


def caption_flaw(text: str) -> str | None:
    """What is wrong with a text: "empty", "refusal", "thinking" or "repeating"; None for a description.

    >>> caption_flaw("I'm sorry, but I can't help with that."), caption_flaw("a dog " * 30), caption_flaw(" ... ")
    ('refusal', 'repeating', 'empty')
    >>> caption_flaw("A dog sits beside a sorry-looking boat.") is None
    True
    """
    if not any(character.isalnum() for character in text):
        return "empty"
    if _THOUGHT.search(text):
        return "thinking"
    if is_refusal(text):
        return "refusal"
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    if len(words) >= _MIN_WORDS and len(set(triples)) < _MIN_DISTINCT * len(triples):
        return "repeating"
    raw = text.encode("utf-8", "replace")
    if len(raw) >= _MIN_BYTES and len(raw) > _MAX_COMPRESSION * len(
        zlib.compress(raw)
    ):  # finds repetition without spaces too
        return "repeating"
    return None
