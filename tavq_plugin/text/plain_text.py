"""Markdown and HTML as models write them, read as plain text; every character keeps its place in the original.

Parsers of markdown give the line of a token and not its characters, so the marks are found here by patterns: each
pattern cuts or replaces some characters, and the rest keep their places. What a pattern does not know stays as text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# A text without any of these is plain already; most are.
_MAYBE_MARKED = re.compile(
    r"[*_`#<>&|~\\\[\u20e3]|^[ \t]*(?:[^\w\s\"'(<]|\(?\w{1,4}(?:\.\d+)*[.)])[ \t]|^[ \t]*\d{1,2}[.)][A-Z]", re.MULTILINE
)


@dataclass(frozen=True)
class PlainText:
    """A text without its marks."""

    text: str
    starts: tuple[int, ...] | None = None  #: of each character, its place in the original; None: the same place
    ends: tuple[int, ...] | None = None  #: of each character, the end of its place in the original

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where text[start:end], which is not empty, lies in the original."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[end - 1]


def plain_text(text: str) -> PlainText:
    """Read markdown and HTML; a text without marks is returned as it is.

    Headings, emphasis, marks and numbers of lists, quotes, fences, tags and the targets of links are cut; entities
    become their characters. A tag such as <br> ends a line. The cells of a table's row are parted by semicolons.

    >>> plain_text("- **Subject:** A *red* ball &amp; a [box](https://a.b/c)").text
    'Subject: A red ball & a box'
    """
    if not _MAYBE_MARKED.search(text):
        return PlainText(text)
    marked = _Marked(text)
    for change in _CHANGES:
        marked.change(change)
    return PlainText(marked.text, tuple(marked.starts), tuple(marked.ends))


_Edit = tuple[int, int, str]  # start, end, and the characters that take their place
_Change = Callable[[str], Iterator[_Edit]]


class _Marked:
    """A text under change, with the place of each of its characters in the original."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [*range(len(text))]
        self.ends = [*range(1, len(text) + 1)]

    def change(self, change: _Change) -> None:
        """Make the edits of one kind, which are in order and do not overlap."""
        pieces: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        place = 0
        for start, end, put in [*change(self.text), (len(self.text), len(self.text), "")]:
            pieces += [self.text[place:start], put]
            starts += self.starts[place:start]
            ends += self.ends[place:start]
            if put:
                starts += [self.starts[start]] * len(put)
                ends += [self.ends[end - 1]] * len(put)
            place = end
        self.text, self.starts, self.ends = "".join(pieces), starts, ends


def _cut(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> _Change:
    """Cut the groups of each match, or the whole match of a pattern without groups."""
    found = re.compile(pattern, flags | re.MULTILINE)

    def edits(text: str) -> Iterator[_Edit]:
        for match in found.finditer(text):
            for group in range(1, found.groups + 1) if found.groups else (0,):
                start, end = match.span(group)
                if start < end:
                    yield start, end, ""

    return edits


def _put(pattern: str, put: str, flags: re.RegexFlag = re.NOFLAG) -> _Change:
    """Put characters in the place of each match."""
    found = re.compile(pattern, flags | re.MULTILINE)
    return lambda text: ((match.start(), match.end(), put) for match in found.finditer(text))


_SEPARATOR = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")
_BETWEEN = re.compile(r"[ \t]*(?<!\\)\|[ \t|]*")


def _tables(text: str) -> Iterator[_Edit]:
    """Cut the edges of each row and the line below the head; put a semicolon between two cells."""
    if "|" not in text:
        return
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    separators = {i for i, line in enumerate(lines) if "|" in line and _SEPARATOR.fullmatch(line.strip())}
    in_table, place = False, 0
    for i, line in enumerate(lines):
        bare = line.strip()
        in_table = "|" in bare and (
            in_table or i + 1 in separators or (len(bare) > 2 and bare[0] == bare[-1] == "|" and bare[1] != "|")
        )
        length = len(line.rstrip("\r\n"))
        if in_table and i in separators:
            yield place, place + length, ""
        elif in_table:
            left, right = re.match(r"[ \t]*(?:\|[ \t|]*)?", line[:length]), re.search(r"[ \t|]*$", line[:length])
            assert left and right
            inner = [place + left.end(), place + max(left.end(), right.start())]
            if place < inner[0]:
                yield place, inner[0], ""
            for match in _BETWEEN.finditer(text, *inner):
                ended = text[match.start() - 1] in ".!?;"
                yield match.start(), match.end(), " " if ended else "; "
            if inner[1] < place + length:
                yield inner[1], place + length, ""
        place += len(line)


def _entities(text: str) -> Iterator[_Edit]:
    for match in re.finditer(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,30});", text):
        character = html.unescape(match.group())
        if character != match.group():
            yield match.start(), match.end(), character


_NUMBERED = re.compile(r"^[ \t]*\(?\d{1,3}[.)][ \t]+\S.*", re.MULTILINE)
_LATER_NUMBER = re.compile(r"(?<=[.!?])[ \t]+\(?\d{1,3}[.)](?=[ \t]+\S)")


def _later_numbers(text: str) -> Iterator[_Edit]:
    """End the line at each further number of a numbered line: "1. A dog sits. 2. A cat runs."."""
    for line in _NUMBERED.finditer(text):
        for match in _LATER_NUMBER.finditer(line.group()):
            yield line.start() + match.start(), line.start() + match.end(), "\n"


def _list_marks(text: str) -> Iterator[_Edit]:
    """Cut what stands before the text of a line: marks of quotes, headings and list items, numbers, boxes to tick."""
    # "I. Newton" and "A. Smith" are names, unless the text has a "II." or "B." too.
    capitals = r"|[IVX]{1,5}[.)]|[A-H][.)]" if re.search(r"^[ \t]*(?:II|B)[.)][ \t]", text, re.MULTILINE) else ""
    marks = re.compile(_LINE_MARKS.replace("CAPITALS", capitals), re.MULTILINE | re.VERBOSE)
    return ((match.start(), match.end(), "") for match in marks.finditer(text) if match.group())


_LINE_MARKS = r"""^[ \t]*
    (?:>[ \t]*)*
    (?:\#{1,6}[ \t]+)?
    (?:
        (?:[-*+•◦▪▫‣⁃·●○■□►▶➤–—] | \(?\d{1,3}(?:\.\d{1,2})*[.)] | \(?[a-z][.)] CAPITALS)[ \t]+
        | \d{1,2}[.)](?=[A-Z])
    ){0,2}
    (?:\[[ xX✓✔]\][ \t]+)?
    (?:\d\ufe0f?\u20e3[ \t]*)?
"""
_BLOCKS = (
    "p|div|br|hr|li|ul|ol|dl|dt|dd|h[1-6]|tr|table|thead|tbody|caption|blockquote|pre|section|article|header|footer|"
    "main|figure|figcaption|html|body|head|title|center|details|summary"
)
_INLINE = "b|i|u|s|em|strong|span|small|big|sub|sup|mark|del|ins|code|kbd|q|cite|a|img|font|td|th|abbr|tt|strike|label"
_WITHIN = r"\b(?:[ \t\n/][^<>]*)?>"

# In this order: what is found by the marks of an earlier change comes after it. Emphasis of more than 400 characters is
# not looked for, so that the time grows with the length of a text and not with its square.
_CHANGES: tuple[_Change, ...] = (
    _cut(r"<!--.*?-->", re.DOTALL),
    _cut(r"^[ \t>]*(?:`{3,}|~{3,})[ \t]*[\w+.#-]*[ \t]*$"),  # a fence, with the name of its language
    _put(rf"</t[dh]>\s*<t[dh]{_WITHIN}", "; ", re.IGNORECASE),
    _put(rf"</?(?:{_BLOCKS}){_WITHIN}", "\n", re.IGNORECASE),
    _cut(rf"</?(?:{_INLINE}){_WITHIN}", re.IGNORECASE),
    _cut(r"(<)(?:https?://|mailto:)[^\s<>]+(>)"),
    _tables,
    # Lists and headings whose line breaks were lost.
    _put(r"(?<=[.:!?])[ \t]+(?:\d{1,2}[.)]|[-*•])[ \t]+(?=\*\*)", "\n"),
    _later_numbers,
    _put(r"(?<=\S)[ \t]+#{2,6}[ \t]+(?=\S)", "\n"),
    _cut(r"(!?\[)(?=[^\[\]\n]*\]\()[^\[\]\n]*(\]\([^()\s]*(?:\([^()\n]*\)[^()\n]*)*(?:[ \t]+\"[^\"\n]*\")?\))"),
    _cut(r"(\[)[^\[\]\n]+(\]\[[^\[\]\n]*\])"),
    _cut(r"^[ \t]*\[[^\[\]\n]+\]:[ \t]+\S+.*$"),
    _cut(r"(`{1,3})[^`\n]+(\1)"),
    *[_cut(r"(?<!\\)(\*{2,3}(?=[^\s*]))[^\n]{0,400}?[^\s\\](\1)(?!\*(?!\*))")] * 2,
    *[_cut(r"(?<![\w*\\])(\*)(?=[^\s*])[^*\n]*(?<=[^\s*\\])(\*)(?![\w*])")] * 2,
    *[_cut(r"(?<![\w\\])(_{1,3})(?=[^\s_])[^\n]{1,400}?(?<=[^\s_\\])(\1)(?!\w)")] * 2,
    _cut(r"(~~)(?=\S)[^~\n]+(~~)"),
    _cut(r"(?<![\\*])\*{2,3}(?=[^\s*])|(?<=[^\s*\\])\*{2,3}(?!\*)"),  # bold that is not closed
    _cut(r"(?<=\S)[ \t]+#+[ \t]*$"),  # # a heading that is closed #
    _list_marks,
    _cut(r"(\\)[!-/:-@\[-`{-~]"),
    _entities,
)
