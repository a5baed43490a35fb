"""Where the sentences of a text begin and end."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tavq_plugin.text.word_tokens import ABBREVIATIONS, BEFORE_NUMBER, URL

# A sentence does not end after these before a small letter or a digit.
_ABBREVIATED = re.compile(rf"(?:\b(?:{ABBREVIATIONS}|{BEFORE_NUMBER}|c)|\b[a-z]\.[a-z])\.\s*$", re.IGNORECASE)
_AFTER_MEASURE = re.compile(r"\d\s?(?:mm|cm|km|m|kg|g|ml|l|h|s)\.(?=\s+[A-Z])")  # where sentencex sees no end


def sentence_spans(plain: str, language: str) -> Iterator[tuple[int, int]]:
    """Spans of the sentences that hold at least one letter or digit; a line break always ends one."""
    for line in re.finditer(r"[^\r\n]+", plain):
        for start, end in _sentences_of_line(line.group(), language):
            bare = URL.sub("", plain[line.start() + start : line.start() + end])
            if any(character.isalnum() for character in bare):
                yield line.start() + start, line.start() + end


def _sentences_of_line(line: str, language: str) -> Iterator[tuple[int, int]]:
    """Spans without the white space around them."""
    from sentencex import segment  # 3 ms; only where text is split

    spans: list[tuple[int, int]] = []
    place = 0
    for sentence in segment(language, line):
        bare = sentence.strip()
        if not bare:
            continue
        start = line.find(bare, place)
        place = start + len(bare)
        if spans and (bare[0].islower() or bare[0].isdigit()) and _ABBREVIATED.search(line, *spans[-1]):
            start = spans.pop()[0]
        for match in _AFTER_MEASURE.finditer(line, start, place):
            spans.append((start, match.end()))
            start = match.end() + len(line[match.end() : place]) - len(line[match.end() : place].lstrip())
        spans.append((start, place))
    yield from spans
