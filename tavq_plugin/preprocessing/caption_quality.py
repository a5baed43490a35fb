"""Find generated texts that describe nothing: empty texts, refusals, a model's thoughts and endless repetition."""

from __future__ import annotations

import re
import zlib

# Someone who declines: who, and that or what they cannot.
_REFUSAL = re.compile(
    r"""^\W*(?:unfortunately,?\s|regrettably,?\s)?(?:
        (?:i['’]m|i\sam|we['’]re|we\sare)\s(?:really\s|very\s|so\s)?(?:sorry|unable|not\sable|afraid)
      | apologies\b | (?:my|our)\sapologies
      | (?:i|we)\s(?:must|have\sto|need\sto)\s(?:decline|refuse)
      | as\san?\s(?:ai|language\smodel|artificial)
      | (?:i\s)?(?:do\snot|don['’]t)\ssee\s(?:an?|any|the)\s(?:image|picture)
      | please\s(?:provide|upload|share|attach)\s(?:an?|the|your)\s(?:image|picture|photo)
      | (?:there\s(?:is|was)\s|there['’]s\s)?no\s(?:image|picture|photo)\s(?:is\s|was\s|has\sbeen\s)?
        (?:attached|provided|uploaded|included|given|shared|visible|available)
      | 抱歉 | 很抱歉 | 对不起 | 我?(?:无法|不能)(?:描述|查看|看到|识别|提供|帮助) | 申し訳(?:ありません|ございません)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
# "Sorry" or "I can't" may begin a description: a refusal has nothing after it that describes.
_SORRY = re.compile(r"^\W*sorry\b(?!!)(?:[,.\s]*$|[,.]?\s(?:but\s)?(?:i|we|no|this|that)\b)", re.IGNORECASE)
_CANNOT = re.compile(
    r"""^\W*(?:unfortunately,?\s)?(?:i|we)\s
        (?:can['’]?t|cannot|can\snot|could\s?n['’]?t|won['’]t|don['’]t\shave|am\sunable)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_GOES_ON = re.compile(r"\bbut\s(?:he|she|it|they|there|in|on|behind|beside)\b", re.IGNORECASE)
_THOUGHTS = re.compile(r"</?(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_MIN_WORDS = 12  # shorter texts may repeat words
_MIN_DISTINCT = 0.5  # share of distinct word triples; joined human captions of one image have 0.8 and more
_MAX_COMPRESSION = 5.0  # zlib shrinks prose of some hundred letters 1.5 to 2.5 times
_MIN_BYTES = 200  # shorter texts are not compressed


def caption_flaw(text: str) -> str | None:
    """What is wrong with a text: "empty", "refusal", "thoughts" or "repeating"; None for a description.

    >>> caption_flaw("I'm sorry, but I can't help with that."), caption_flaw("a dog " * 30), caption_flaw(" ... ")
    ('refusal', 'repeating', 'empty')
    >>> caption_flaw("A dog sits beside a sorry-looking boat.") is None
    True
    """
    if not any(character.isalnum() for character in text):
        return "empty"
    if _THOUGHTS.search(text):
        return "thoughts"
    if _REFUSAL.search(text) or _SORRY.search(text) or (_CANNOT.search(text) and not _GOES_ON.search(text)):
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
