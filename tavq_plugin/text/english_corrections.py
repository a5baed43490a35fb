"""Corrections of the English tagger's code letters, where the words around a word say what it is.

The tagger decides word by word from few neighbours: it takes "flies" of "a flag flies" for a noun, and a capital "A"
after a colon for a letter of the alphabet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Likelihoods = Callable[[str], Sequence[tuple[str, float]]]  # a word → its tags with their log-likelihoods

_SINGULAR = frozenset(["a", "an", "one", "each", "every"])
_MEASURE_NAMES = (
    "mm cm dm m km inch inches in ft feet yd mi g mg kg lb lbs oz ml cl l w kw mw v kv ma mah hz khz mhz ghz kb mb gb "
    "tb mp px dpi s sec ms min h hr °c °f mph a.m. p.m. am pm"
)
_UNITS_OF_MEASURE = frozenset(_MEASURE_NAMES.split())
# Tags of finite verbs, auxiliaries among them
_FINITE = re.compile(r"VV[ZBD]|V[BHD][ZBD]|VM0")
_BOUNDARY = re.compile(r'[;:.!?()"–—]')
_SUBORDINATES = ("CJS", "CJT", "PNQ", "DTQ")
# Log-ratio of verb to noun below which a word is no verb without further evidence: before other words, before another
# noun, and at the end of a clause, where a list of things ends too ("coffee cups and wall clocks.")
_LEAST = {"n": 0.0, "": -0.5, "other": -2.2}


def corrected_codes(tokens: Sequence[str], tags: Sequence[str], codes: str, likelihoods: Likelihoods) -> str:
    """The codes of one sentence, corrected; one letter per token."""
    letters = list(codes)
    _correct_articles(tokens, letters)
    _correct_measures(tokens, letters)
    _part_predicates(tags, letters)
    _correct_verbs(tokens, tags, letters, likelihoods)
    return "".join(letters)


def _correct_articles(tokens: Sequence[str], letters: list[str]) -> None:
    """The letter A before a word is an article, as in "Subject: A dog"."""
    for i, token in enumerate(tokens[:-1]):
        if token in ("A", "An", "The", "a", "an", "the") and letters[i] != "d" and tokens[i + 1][0].isalnum():
            letters[i] = "d"


def _correct_measures(tokens: Sequence[str], letters: list[str]) -> None:
    """A unit of measure after a number is a noun, and a part of the number before a noun: "3.5 mm audio jack"."""
    for i, token in enumerate(tokens[1:], 1):
        if letters[i - 1] == "m" and token.lower() in _UNITS_OF_MEASURE and tokens[i - 1][0].isdigit():
            rest = "".join(letters[i + 1 :])
            if token == "in" and not re.match("[xn,]", rest or "x"):
                continue  # "from 1990 in the park"
            letters[i] = "m" if re.match(r"a*n", rest) and "." not in token else "n"


def _part_predicates(tags: Sequence[str], letters: list[str]) -> None:
    """The adjective of "is low, and wet sand" is no attribute of the noun: the comma ends a phrase."""
    for match in re.finditer(r"xr*a(,)c", "".join(letters)):
        if tags[match.start()].startswith("VB"):
            letters[match.start(1)] = "x"


def _correct_verbs(tokens: Sequence[str], tags: Sequence[str], letters: list[str], likelihoods: Likelihoods) -> None:
    """A noun after a noun is the verb that its clause lacks: "the flag flies", "clouds part"."""
    codes = "".join(letters)
    if "nn" not in codes:
        return
    complete = tokens[-1] in ".!?" or (len(tokens) > 1 and tokens[-1] == '"' and tokens[-2] in ".!?")
    for start, end in _clauses(tokens, tags):
        if any(_FINITE.fullmatch(tag) and letters[i] != "d" for i, tag in enumerate(tags[start:end], start)):
            continue
        best, place = float("-inf"), None
        for i in range(start + 1, end):
            if letters[i] != "n" or letters[i - 1] != "n" or tags[i - 1].startswith("NP"):
                continue
            ratio = _verb_ratio(tokens[i], tags[i], tags[i - 1], likelihoods)
            follows = codes[i + 1 : i + 2] if i + 1 < end else ""
            if ratio is None or follows == "s":
                continue
            if tags[i] == "NN2" and follows != "n" and _has_singular_article(tokens, codes, i):
                place = i
                break
            least = _LEAST.get(follows if follows not in ("x", ",", "c") else "", _LEAST["other"])
            if complete and ratio > max(best, least):
                best, place = ratio, i
        if place is not None:
            letters[place] = "w"


def _verb_ratio(token: str, tag: str, before: str, likelihoods: Likelihoods) -> float | None:
    """Log-ratio of verb to noun, if the noun before agrees with the verb; else None."""
    if tag == "NN2" and before != "NN2" and token.lower().endswith("s"):
        verb = "VVZ"
    elif tag in ("NN1", "NN0") and before in ("NN2", "NN0"):
        verb = "VVB"
    else:
        return None
    known = dict(likelihoods(token))
    return float(known.get(verb, float("-inf")) - known.get(tag, 0.0))


def _has_singular_article(tokens: Sequence[str], codes: str, place: int) -> bool:
    """Whether the noun phrase before this place begins with "a": then a plural at the place is no noun of it."""
    phrase = re.search(r"[dm][ravgm,c]*n+$", codes[:place])
    return phrase is not None and tokens[phrase.start()].lower() in _SINGULAR


def _clauses(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[int, int]]:
    """Spans of tokens between marks, subordinating words, ", and" and the "and" before another verb."""
    spans, start = [], 0
    for i, token in enumerate(tokens):
        then = tags[i + 1 : i + 2]
        linked = tags[i] == "CJC" and i > 0 and (tokens[i - 1] == "," or then in (["VVZ"], ["VVB"]))
        if _BOUNDARY.fullmatch(token) or tags[i].startswith(_SUBORDINATES) or linked:
            spans.append((start, i))
            start = i + 1
    return [span for span in [*spans, (start, len(tokens))] if span[0] < span[1]]
