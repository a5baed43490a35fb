"""Numbers of things in messages: "1 image", "2 images"."""

from __future__ import annotations

import re

_FIRST_PLURAL = re.compile(r"^((?:[a-z-]+ )?[a-z]+)s\b")  # of a noun that one adjective may precede


def counted(number: int, things: str) -> str:
    """A number and what it counts; the first noun, given in the plural, is made singular for the number 1.

    >>> counted(1, "images of a split"), counted(1, "system files"), counted(1, ".gif"), counted(2000, "images")
    ('1 image of a split', '1 system file', '1 .gif', '2,000 images')
    """
    return f"{number:,} " + (_FIRST_PLURAL.sub(r"\1", things) if number == 1 else things)
