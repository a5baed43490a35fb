"""The tokens of a text, and which of them are words."""

from __future__ import annotations

import re
import unicodedata

# With the point that follows them, these are one token: always, and before a number.
ABBREVIATIONS = "dr|mr|mrs|ms|prof|st|sr|jr|approx|ca|vs|etc|incl|jan|feb|aug|sept|oct|nov|dec"
BEFORE_NUMBER = "no|nr|fig|vol|max|min|p"
_UNSPACED = r"\u2e80-\u2fdf\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"  # Han, kana, hangul
URL = re.compile(r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\"'.,;:!?()\[\]]", re.IGNORECASE)
TOKEN = re.compile(
    rf"""{URL.pattern}
      | \w+(?=n't\b) | n't\b | o'clock\b          # is|n't, o'clock
      | (?<!\w)(?:[a-z]\.){{2,}}                   # U.S., a.m.
      | (?<!\w)(?:{ABBREVIATIONS})\. | (?<!\w)(?:{BEFORE_NUMBER})\.(?=\s*\d)
      | (?<!\w)(?-i:[A-Z]\.)(?=\s[A-Z])           # J. Smith
      | \d+(?:[.,:/]\d+)+(?:%|(?:-\w+)+)? | \d+%  # 5:30, 1,000, 20%, 15.6-inch
      | '(?:s|re|ve|ll|d|m)\b                     # man|'s
      | [{_UNSPACED}]+ | °[cf]\b
      | [^\W{_UNSPACED}](?:[^\W{_UNSPACED}]|[\u0300-\u036f])*(?:-\w[\w\u0300-\u036f]*)*
      | [^\w\s]""",
    re.VERBOSE | re.IGNORECASE,
)
LONGEST_WORD = 40  # characters; longer tokens are not words, and HanTa's time grows with the square of the length
_LATIN = re.compile(r"[A-Za-z0-9\u00c0-\u024f]")
_FILLER = frozenset(["s", "m", "x", "re", "ve", "ll", "°c", "°f"])  # stray letters of clitics and "2 x 3"


def is_word(token: str) -> bool:
    """Whether a token may be a unit: it has a Latin letter or a digit, and is neither too long nor a stray letter."""
    return len(token) <= LONGEST_WORD and token.lower() not in _FILLER and bool(_LATIN.search(token))


def is_taggable(token: str) -> bool:
    """Whether a tagger can say what the token is: neither an address, nor too long, nor of another script."""
    if token.isascii():
        return len(token) <= LONGEST_WORD and not URL.fullmatch(token)
    return len(token) <= LONGEST_WORD and not (token[0].isalpha() and not _LATIN.search(token))


def is_latin(character: str) -> bool:
    """Whether a letter is of the Latin script."""
    return character.isascii() or "LATIN" in unicodedata.name(character, "")


def composed(text: str) -> str:
    """The text with each accent in its letter, Unicode's form NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
