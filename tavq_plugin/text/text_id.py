"""The id of a text, by which its image finds it: one function makes it, for every reader, data set and store."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def text_id(key: str | int, archive: str | None = None) -> str:
    r"""The id of a record, always a string: its key, after its archive if there are several, in Unicode's form NFC.

    File names of macOS are often decomposed ("e" and an accent); NFC makes both spellings one.

    >>> text_id(7), text_id("0001", "b.tar"), text_id("cafe\u0301.png") == "caf\u00e9.png"
    ('7', 'b.tar/0001', True)
    """
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise ValueError(f"an id must be a string or a whole number, got {type(key).__name__} {key!r}")
    return unicodedata.normalize("NFC", str(key) if archive is None else f"{archive}/{key}")


def refuse_ambiguous(numbers: Iterable[tuple[int, int | None, str | None]]) -> None:
    """Raise ValueError for a number that could be a row or an id.

    Each number comes with the row of the text whose id it is (None: no text has it), and the id of that row (None:
    there is no such row).
    """
    for number, row, name in numbers:
        if row is not None and row != number:
            raise ValueError(
                f'{number} is both a row number and the id of row {row}: give the string "{number}" for the id, or '
                f"rows=[{number}] (or a tensor) for the row number"
            )
        if name is not None and name.isdecimal() and name != str(number):
            raise ValueError(
                f"no text has the id {number}, and row {number} has the id {name!r}: give ids as strings, or "
                f"rows=[{number}] (or a tensor) for row numbers"
            )
