"""Blank out the marks of Markdown: they are neither words nor sentences."""

from __future__ import annotations

import re

# Texts without any of these are not looked at further.
_MAYBE = re.compile(r"[#*|_`>•]|^[ \t]*(?:[-+][ \t]|\(?\d)", re.MULTILINE)
_LIST_LINE = re.compile(r"^[ \t]*\(?\d{1,3}[.)](?=[ \t]+\S).*", re.MULTILINE)
_NUMBER = re.compile(r"(?:^|(?<=[.!?])[ \t]+)[ \t]*\(?\d{1,3}[.)](?=[ \t]+\S)")
_TABLE_LINE = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)
_LINE_START = re.compile(r"^[ \t]*(?:#{1,6}|>+|[-*+•])[ \t]+", re.MULTILINE)
_DOUBLED = re.compile(r"\*{2,}|_{2,}|`+")
_PAIRED = re.compile(r"(?<![\w*])(?P<mark>[*_])(?=\S)([^*_\n]{1,200})(?P=mark)(?![\w*])")


def may_have_markdown(text: str) -> bool:
    """Whether a text has a character that may be a mark of Markdown."""
    return bool(_MAYBE.search(text))


def without_markdown(text: str) -> str:
    r"""The text with blanks in place of marks, and line breaks between the cells of a table; its length stays.

    Marks are those of headings, quotations, lists, tables, code and emphasis. The numbers of a list are marks too:
    at the start of a line, and after a sentence within such a line.

    >>> without_markdown("1. A *red* dog. 2. A cat\n### Scene")
    '   A  red  dog.    A cat\n    Scene'
    """
    if not may_have_markdown(text):
        return text
    text = _TABLE_LINE.sub(lambda line: line[0].replace("|", "\n"), text)
    text = _LINE_START.sub(_blanks, text)
    text = _LIST_LINE.sub(lambda line: _NUMBER.sub(_blanks, line[0]), text)
    text = _DOUBLED.sub(_blanks, text)
    return _PAIRED.sub(lambda found: f" {found[2]} ", text)


def _blanks(found: re.Match[str]) -> str:
    return " " * len(found[0])
