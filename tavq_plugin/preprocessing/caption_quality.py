"""Whether a generated text is a description at all: empty, a refusal, or a loop."""

from __future__ import annotations

import re
import zlib

_REFUSAL = re.compile(
    r"""^\W*(?:
        (?:i['’]m|i\sam|we['’]re)\s(?:really\s|very\s|so\s)?(?:sorry|unable|not\sable|afraid)
      | sorry\b | apologies\b | my\sapologies
      | (?:unfortunately,?\s)?(?:i|we)\s(?:can['’]?t|cannot|can\snot|could\s?n['’]?t|won['’]t|don['’]t\shave|am\sunable)
      | as\san?\s(?:ai|language\smodel|artificial)
      | (?:i\s)?(?:do\snot|don['’]t)\ssee\s(?:an?|any|the)\s(?:image|picture)
      | no\simage\s(?:was|is|has|provided)
      | please\s(?:provide|upload|share)\s(?:an?|the|your)\s(?:image|picture)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_LEAST_WORDS = 12  # below this, repeating says nothing
_DISTINCT = 0.5  # least share of distinct triples of words; joined human captions of one image have .8 and more
_PACKED = 5.0  # times that a text shrinks when packed; prose of some hundred letters shrinks 1.5 to 2.5 times
_LEAST_BYTES = 200


def flaw(text: str) -> str | None:
    """What is wrong with a text: "empty", "refusal" or "repeating"; None for a description.

    >>> flaw("I'm sorry, but I can't help with that."), flaw("a dog " * 30), flaw(" ... ")
    ('refusal', 'repeating', 'empty')
    >>> flaw("A dog sits beside a sorry-looking boat.") is None
    True
    """
    if not any(character.isalnum() for character in text):
        return "empty"
    if _REFUSAL.search(text):
        return "refusal"
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    if len(words) >= _LEAST_WORDS and len(set(triples)) < _DISTINCT * len(triples):
        return "repeating"
    raw = text.encode("utf-8", "replace")
    if len(raw) >= _LEAST_BYTES and len(raw) > _PACKED * len(zlib.compress(raw)):  # also without spaces
        return "repeating"
    return None
