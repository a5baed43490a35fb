"""What a reader of images with text gives: records, and rejections that say why.

Every reader takes `reject`: with it a broken record is handed over and left out, without it ValueError is raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that moved to other files

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Record:
    """One image and what is said of it; `text` may be empty."""

    id: str
    image: Path | bytes | None  # None: only its text is known; bytes: the encoded file, from an archive
    text: str
    split: str | None = None
    source: str | None = None
    boxes: tuple[dict[str, Any], ...] = ()
    qa: tuple[dict[str, Any], ...] = ()
    masks: tuple[Path, ...] = ()
    captioner: str | None = None  # model, revision and prompt of a text that `tavq caption` wrote
    line: int | None = None  # or row, in the file it stands in


class Rejection(NamedTuple):
    """A record that is left out, and why."""

    file: str
    line: int | None  # or row, or member; None where the file is the record
    reason: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.reason}"


Reject = Callable[[Rejection], None]


def refuse(rejection: Rejection) -> None:
    """What is done without a `reject` of one's own."""
    raise ValueError(str(rejection))


def lines_of(file: Path, reject: Reject = refuse) -> list[str] | None:
    """The lines of a text file, none where it is missing; None where it is rejected."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    except UnicodeDecodeError as error:
        reject(Rejection(str(file), None, f"not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"))
        return None


def inside(folder: Path, name: str) -> Path:
    """The image's path; ValueError where the name leads out of the folder or to nothing.

    The name is what is not trusted: `..` is taken off it before any link is followed. Links are the folder's owner's
    own (images/ on another disk, a subset made of links), and are followed.
    """
    roots = {Path(os.path.abspath(folder)), folder.resolve()}
    for base in (folder / "images", folder):
        path = Path(os.path.abspath(base / name))
        if not any(path.is_relative_to(root) for root in roots):
            raise ValueError(f"image {name!r} leads out of {folder}; only files inside are read")
        try:
            there = path.is_file()
        except (ValueError, OSError) as error:  # a null byte, a name too long
            raise ValueError(f"image {name[:80]!r} is no file name ({error})") from error
        if there:
            return path
    raise ValueError(f"no file {name!r} in {folder / 'images'} or {folder}; add it or delete the line")


def hidden(name: PurePath) -> bool:
    """Whether a relative name is no user's file: .DS_Store, ._0.png, __MACOSX/0.png, .git/…

    >>> [hidden(PurePath(name)) for name in ("a/._0.png", "__MACOSX/0.png", "./a/0.png", "a/../0.png")]
    [True, True, False, False]
    """
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in name.parts)


def joined(captions: list[str]) -> str:
    """Captions as the sentences of one text.

    >>> joined(["a dog runs", " Two men. ", ""])
    'A dog runs. Two men.'
    """
    captions = [caption.strip() for caption in captions]
    ends = (".", "!", "?")
    return " ".join(c[0].upper() + c[1:] + ("" if c.endswith(ends) else ".") for c in captions if c)
