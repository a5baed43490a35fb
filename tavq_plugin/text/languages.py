"""What each language needs: its model in HanTa's wheel, the meaning of its tags, and its function words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

_REMEMBERED = 2**16  # words


@dataclass(frozen=True)
class Language:
    """How a language's tags become the code letters of `phrase_chunker`; the longest listed prefix of a tag decides."""

    code: str  # ISO 639-1, as sentencex takes it
    model: str | None  # a file in HanTa's wheel; None: no tagger, so no phrases, and words only from a segmenter
    tags: Mapping[str, str]
    compounds: tuple[tuple[str, ...], ...] = ()  # prepositions of several words
    function_words: frozenset[str] = frozenset()  # words that the tagger takes for nouns, adjectives or verbs


_ENGLISH_COMPOUNDS = (
    "in front of; in back of; on top of; in spite of; instead of; because of; next to; close to; due to; such "
    "as; a lot of; lots of; in order to; at least; kind of; sort of"
)
# Auxiliary, copular and modal verbs; CGN's tags do not distinguish them from other verbs
_DUTCH_VERBS = (
    "ben bent is was waren zijn geweest heb hebt heeft had hadden hebben gehad word wordt werd werden worden "
    "geworden kan kun kunt kon konden kunnen moet moest moesten moeten mag mocht mochten mogen zal zult zullen "
    "zou zouden wil wilt wilde wilden willen"
)

ENGLISH = Language(
    "en",
    "morphmodel_en.pgz",
    {  # the BNC's C5; a tag that is not listed is "x", which ends every phrase
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
    },
    tuple(tuple(words.split()) for words in _ENGLISH_COMPOUNDS.split("; ")),
    frozenset(
        [
            "while",
            "whilst",
            "whereas",
            "via",
            "onto",
            "upon",
            "amid",
            "amidst",
            "et",
            "etc",
            "etc.",
            "approx.",
            "e.g.",
            "i.e.",
            "vs.",
            "ca.",
        ]
    ),
)
GERMAN = Language(
    "de",
    "morphmodel_ger.pgz",
    {  # STTS as HanTa writes it, which tags participles before a noun as ADJ(A)
        "ART": "d",
        "PPOSAT": "d",
        "PDAT": "d",
        "PIAT": "d",
        "PWAT": "d",
        "ADJ(A)": "a",
        "ADJ(D)": "a",
        "CARD": "m",
        "NN": "n",
        "NE": "n",
        "FM": "n",
        "VV": "w",  # lexical; VA and VM, auxiliary and modal, are not listed
        "ADV": "r",
        "PTKVZ": "t",  # springt auf
        "APPR": "p",
        "KON": "c",
    },
)
DUTCH = Language(
    "nl",
    "morphmodel_dutch.pgz",
    {  # CGN
        "LID": "d",
        "VNW(bez": "d",  # zijn, hun
        "VNW(aanw,det": "d",  # deze, dat
        "VNW(onbep,det": "d",  # enkele, alle
        "ADJ": "a",
        "WW(od,prenom": "a",  # lachende
        "WW(vd,prenom": "a",  # geverfde
        "TW": "m",
        "N(": "n",
        "SPEC": "n",  # names, foreign words
        "WW": "w",
        "BW": "r",
        "VZ(fin": "t",  # springt op
        "VZ": "p",
        "VG(neven": "c",
    },
    function_words=frozenset(_DUTCH_VERBS.split()),
)
LANGUAGES = {
    "en": ENGLISH,
    "de": GERMAN,
    "nl": DUTCH,
    "zh": Language("zh", None, {}),
    "ja": Language("ja", None, {}),
}


@cache
def tagger(model: str) -> Any:
    """One of HanTa's taggers, from its wheel; nothing is downloaded."""
    from HanTa import HanoverTagger

    found = HanoverTagger.HanoverTagger(model)
    # It has a list of common words, and takes any other word apart each time it meets it: a quarter of all time.
    found.analyze_forward = lru_cache(maxsize=_REMEMBERED)(found.analyze_forward)
    return found
