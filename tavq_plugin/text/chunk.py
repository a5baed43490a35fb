"""Noun and verb phrases from part-of-speech tags, by a small chunker over tag codes.

HanTa tags English with the BNC's C5 set. Every token becomes one code letter, so that a phrase is a regular
expression over the codes and its span of letters is its span of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# C5 tag (by its longest listed beginning) → code. What is not listed is "x": it ends every phrase.
CODES = {
    "AT0": "d",  # a, the, no, every
    "DPS": "d",  # his, their
    "DT0": "d",  # this, both, several
    "DTQ": "d",  # which, whose
    "AJ": "a",  # adjective, also comparative and superlative
    "CRD": "m",  # two, 1990
    "ORD": "m",  # second, last
    "NN": "n",
    "NP": "n",
    "UNC": "n",  # unknown words, mostly names and foreign nouns
    "ZZ": "n",  # letters: "a letter B"
    "VVN": "v",  # painted
    "VVD": "v",
    "VVG": "g",  # running
    "VV": "w",  # finite or bare lexical verb
    "AV0": "r",  # brightly
    "AVP": "t",  # particle: up, off
    "PRP": "p",
    "PRF": "f",  # of: ends a phrase, so "a group of people" is two
    "POS": "s",  # 's
    "CJC": "c",  # and
    "PUN": ",",  # only the comma: see `encode`
}
WORD_KINDS = {"noun": "n", "adjective": "a", "verb": "vgw", "number": "m"}

# Prepositions of several words whose parts HanTa tags as nouns and adjectives.
COMPOUND = tuple(
    tuple(words.split())
    for words in (
        "in front of",
        "in back of",
        "on top of",
        "in spite of",
        "instead of",
        "because of",
        "next to",
        "close to",
        "due to",
        "such as",
        "a lot of",
        "lots of",
        "in order to",
        "at least",
        "kind of",
        "sort of",
    )
)

# Function words HanTa takes for nouns, adjectives or verbs in descriptions.
FUNCTION_WORDS = frozenset(["while", "whilst", "whereas", "via", "onto", "upon", "amid", "amidst", "et", "etc"])

# Attributes of a noun. An adverb counts only before an adjective or participle ("brightly colored"), a comma or
# "and" only between two of them ("black and white dogs"). A participle needs something before it inside the
# phrase or a preposition in front ("a running dog", "with painted faces"), or it is a verb: "wearing jeans".
_ATTRIBUTE = r"(?:r*a|m)"
_LINKED = r"(?:(?:,|,?c)?r*[avg](?=[avgrmn,c])|,?r*a|m)"
_HEAD = r"n(?:s?n)*(?:sr*[am]*n+)*"
NOUN_PHRASE = re.compile(
    rf"(?P<det>d*)(?:(?P<core>(?:(?:(?<=d)|(?<=[pm])v|{_ATTRIBUTE}))(?:{_LINKED})*{_HEAD}|{_HEAD})|(?!))"
)
VERB_PHRASE = re.compile(rf"[vgw]t?[pf]?(?:d*(?:{_ATTRIBUTE}(?:{_LINKED})*)?{_HEAD})|[vgw]t")


def encode(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """One code letter a token.

    >>> encode(["a", "red", "car", "."], ["AT0", "AJ0", "NN1", "PUN"])
    'danx'
    """
    codes = [_code(token, tag) for token, tag in zip(tokens, tags, strict=True)]
    lowered = [token.lower() for token in tokens]
    for words in COMPOUND:
        for i in range(len(lowered) - len(words) + 1):
            if tuple(lowered[i : i + len(words)]) == words:
                codes[i : i + len(words)] = ["p"] * len(words)
    return "".join(codes)


def _code(token: str, tag: str) -> str:
    if tag == "PUN":
        return "," if token == "," else "x"
    if token.lower() in FUNCTION_WORDS:
        return "x"
    if not any(character.isalnum() for character in token):
        return "x"
    for length in (3, 2):
        if tag[:length] in CODES:
            return CODES[tag[:length]]
    return "x"


def noun_phrases(codes: str) -> Iterator[tuple[int, int]]:
    """Token spans of the noun phrases, without their leading determiners, first → last.

    >>> list(noun_phrases("danwdn"))  # a red car passes the house
    [(1, 3), (5, 6)]
    """
    for match in NOUN_PHRASE.finditer(codes):
        yield match.span("core")


def verb_phrases(codes: str) -> Iterator[tuple[int, int]]:
    """Token spans of a lexical verb with its particle, preposition and object; a verb alone is only a word.

    >>> list(verb_phrases("danwpdn"))  # a red car stops at the house
    [(3, 7)]
    """
    for match in VERB_PHRASE.finditer(codes):
        yield match.span()
