"""Noun and verb phrases from part-of-speech tags, by a small chunker over tag codes.

Every token becomes one code letter. A regular expression over the letters finds a phrase; its span of letters is its
span of tokens. The letters: d determiner, a adjective, m number, n noun, v past or passive verb, g verb in -ing,
w other verb, r adverb, t particle, p preposition, f "of", s possessive, c "and", "," comma; x, anything else, ends a
phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from tavq_plugin.text.languages import ENGLISH, LANGUAGES, Language

WORD_KINDS = {"noun": "n", "adjective": "a", "verb": "vgw", "number": "m"}

# Attributes of a noun. An adverb counts only before an adjective or participle ("brightly colored"), and a comma or
# "and" only between two attributes ("black and white dogs"). A participle is an attribute after another word of the
# phrase or after a preposition ("a running dog", "with painted faces"); elsewhere it is a verb ("wearing jeans").
_ATTRIBUTE = r"(?:r*a|m)"
_LINKED = r"(?:(?:,|,?c)?r*[avg](?=[avgrmn,c])|,?r*a|m)"
_HEAD = r"n(?:s?n)*(?:sr*[am]*n+)*"
NOUN_PHRASE = re.compile(
    rf"(?P<det>d*)(?:(?P<core>(?:(?:(?<=d)|(?<=[pm])v|{_ATTRIBUTE}))(?:{_LINKED})*{_HEAD}|{_HEAD})|(?!))"
)
VERB_PHRASE = re.compile(rf"[vgw]t?[pf]?(?:d*(?:{_ATTRIBUTE}(?:{_LINKED})*)?{_HEAD})|[vgw]t")


def code_letters(tokens: Sequence[str], tags: Sequence[str], language: Language = ENGLISH) -> str:
    """One code letter per token.

    >>> code_letters(["a", "red", "car", "."], ["AT0", "AJ0", "NN1", "PUN"])
    'danx'
    """
    codes = [_code(token, tag, language) for token, tag in zip(tokens, tags, strict=True)]
    lowered = [token.lower() for token in tokens]
    for words in language.compounds:
        if words[0] not in lowered:
            continue
        for i in range(len(lowered) - len(words) + 1):
            if tuple(lowered[i : i + len(words)]) == words:
                codes[i : i + len(words)] = ["p"] * len(words)
    return "".join(codes)


def _code(token: str, tag: str, language: Language) -> str:
    if token == ",":
        return ","
    if not (token[0].isalnum() or any(character.isalnum() for character in token)):
        return "x"
    return "x" if token.lower() in language.function_words else _code_of_tag(tag, language.code)


@cache
def _code_of_tag(tag: str, language: str) -> str:
    tags = LANGUAGES[language].tags
    return next((tags[tag[:length]] for length in range(len(tag), 0, -1) if tag[:length] in tags), "x")


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
