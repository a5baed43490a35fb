"""Records of images with text, rejections of broken records, and helpers of all readers.

Every reader calls the function `reject` with each broken record, then goes on to the next one. The default `reject`
raises ValueError.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from tavq_plugin.data.decode import decode_text
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that moved to other files

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Record:
    """One image and its annotations; `text` may be empty."""

    id: str
    image: Path | bytes | None  # None: a text without an image; bytes: the encoded file, from an archive
    text: str
    split: str | None = None
    source: str | None = None
    boxes: tuple[dict[str, Any], ...] = ()
    qa: tuple[dict[str, Any], ...] = ()
    masks: tuple[Path, ...] = ()
    captions: tuple[str, ...] = ()  # those that `text` joins, one by one; () if the text is one
    captioner: str | None = None  # JSON of model, revision and prompt, for a text of `tavq caption`
    line: int | None = None  # number of the line or row in the file
    fields: tuple[str, ...] = ()  # of a record without text: the names of all its fields or members


class Rejection(NamedTuple):
    """A record that is left out, and the reason."""

    file: str
    line: int | None  # number of the line, row or member; None: the whole file
    reason: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.reason}"


Reject = Callable[[Rejection], None]


def raise_rejection(rejection: Rejection) -> None:
    """The default `reject`: raise ValueError."""
    raise ValueError(str(rejection))


def read_lines(
    file: Path, reject: Reject = raise_rejection, settings: ReadSettings | None = None, limit: str = "largest_json"
) -> list[str] | None:
    """The lines of a text file: [] if it is missing, None if it is rejected, such as for its size.

    Args:
        file: The file.
        reject: Called if it cannot be read. Default: raise ValueError.
        settings: Holds the limit of its size. Default: `ReadSettings()`.
        limit: The setting that limits it: that of one text, or of a list of all.
    """
    try:
        if file.is_file() and (reason := (settings or ReadSettings()).excess(file.stat().st_size, limit)):
            raise ValueError(f"too large: {reason}")
        return decode_text(file.read_bytes()).splitlines() if file.is_file() else []
    except ValueError as error:
        reject(Rejection(str(file), None, str(error)))
        return None


def path_inside(folder: Path, name: str) -> Path:
    """The path of a named image in a folder; raises ValueError if the name leads out of the folder, or to no file.

    The name is not trusted: its `..` are resolved before any link is followed. Links in the folder are trusted and
    followed: images/ may be on another disk, and a subset may be made of links.
    """
    roots = {Path(os.path.abspath(folder)), folder.resolve()}
    for base in (folder / "images", folder):
        path = Path(os.path.abspath(base / name))
        if not any(path.is_relative_to(root) for root in roots):
            raise ValueError(f"image {name!r} leads out of {folder}; only files inside are read")
        try:
            exists = path.is_file()
        except (ValueError, OSError) as error:  # a null byte, a name too long
            raise ValueError(f"image {name[:80]!r} is not a file name ({error})") from error
        if exists:
            return path
        if not name.isascii() and (same := _same_in_unicode(base, path)) is not None:
            return same
    raise ValueError(f"no file {name!r} in {folder / 'images'} or {folder}; add it or delete the line")


def _same_in_unicode(base: Path, path: Path) -> Path | None:
    """The file of this name in another form of Unicode (macOS decomposes accents); None if there is none."""
    base = Path(os.path.abspath(base))
    if not path.is_relative_to(base):
        return None
    found = base
    for part in path.relative_to(base).parts:
        if not os.path.lexists(found / part):
            part = names_in_nfc(str(found)).get(unicodedata.normalize("NFC", part), part)
        found /= part
    return found if found.is_file() else None


def names_in_nfc(folder: str) -> Mapping[str, str]:
    """The names in a folder by their NFC form; kept until the folder changes."""
    try:
        return _listed(folder, os.stat(folder).st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=4)
def _listed(folder: str, changed: int) -> Mapping[str, str]:
    return {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}


def is_hidden(name: PurePath) -> bool:
    """Whether a relative name is a system file, not a user's: .DS_Store, ._0.png, __MACOSX/0.png, .git/…

    >>> [is_hidden(PurePath(name)) for name in ("a/._0.png", "__MACOSX/0.png", "./a/0.png", "a/../0.png")]
    [True, True, False, False]
    """
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in name.parts)


def has_surrogates(text: str) -> bool:
    """Whether a text has lone surrogates, which stand for bytes that are not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def captions_as_text(captions: list[str]) -> str:
    """One text with each caption as a sentence.

    >>> captions_as_text(["a dog runs", " Two men. ", ""])
    'A dog runs. Two men.'
    """
    captions = [caption.strip() for caption in captions]
    ends = (".", "!", "?")
    return " ".join(c[0].upper() + c[1:] + ("" if c.endswith(ends) else ".") for c in captions if c)
