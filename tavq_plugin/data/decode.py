"""The one decoder of text files: UTF-8, with or without byte order marks."""

from __future__ import annotations

MARK = "\ufeff"  # the byte order mark; joined files have some inside


def decode_text(content: bytes) -> str:
    r"""UTF-8 text without byte order marks; raises ValueError with the first bad byte, and the mend.

    >>> decode_text(b"\xef\xbb\xbfA dog.\n\xef\xbb\xbfIt runs.")
    'A dog.\nIt runs.'
    """
    try:
        return content.decode().replace(MARK, "")
    except UnicodeDecodeError as error:
        mend = "it looks like UTF-16; " if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start}); {mend}save it as UTF-8") from error
