"""Blocks of code in the pages of the repository, and what a shell command in them is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
OPERATORS = {"&&", "||", ";", "|"}


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A block of code."""

    language: str  # "" if none is named; "{name}" for a directive of Sphinx
    content: str
    line: int  # of its first fence, from 1
    before: str  # the page's text before it


def blocks_of(text: str) -> list[Block]:
    """The fenced and the indented blocks of a page, in order; also those inside a directive, such as a note."""
    lines, found = text.split("\n"), []
    for token in MarkdownIt().parse(text):
        if token.type not in ("fence", "code_block"):
            continue
        start = token.map[0]
        language, before = token.info.split(maxsplit=1)[:1], "\n".join(lines[:start])
        block = Block("".join(language), token.content, start + 1, before)
        inner = blocks_of(block.content) if block.language.startswith("{") and "```" in block.content else []
        shifted = [part._replace(line=block.line + part.line, before=f"{before}\n{part.before}") for part in inner]
        found += shifted or [block]
    return found


def commands_of(script: str) -> Iterator[list[str]]:
    """The commands of a shell block, each as its words, without assignments and the folder of the program."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word not in OPERATORS:
                command.append(word)
                continue
            while command and re.match(r"\w+=", command[0]):
                command = command[1:]
            if command:
                yield [command[0].rpartition("/")[2], *command[1:]]
            command = []
