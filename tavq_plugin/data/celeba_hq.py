"""CelebA-HQ as published: faces with captions, and CelebAMask-HQ's masks of their parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath

from tavq_plugin.data.read_counts import SYSTEM_FILES, ReadCounts
from tavq_plugin.data.records import (
    IMAGE_ENDINGS,
    Record,
    Reject,
    captions_as_text,
    is_hidden,
    raise_rejection,
    read_lines,
)
from tavq_plugin.data.unnamed_files import NamedFiles, files_below, first_folder

TEXTS = ("celeba-caption", "text", "captions")
IMAGES = ("CelebA-HQ-img", "images")
MASKS = "CelebAMask-HQ-mask-anno"


def from_celeba_hq(
    folder: Path, reject: Reject = raise_rejection, counts: ReadCounts | None = None
) -> Iterator[Record]:
    """CelebA-HQ with caption files (0.jpg, 0.txt) and, if present, CelebAMask-HQ's masks (0/00000_hair.png).

    Captions and masks of images that are not there are counted.
    """
    counts = counts or ReadCounts()
    images, texts = (
        first_folder(folder, IMAGES, "images of CelebA-HQ"),
        first_folder(folder, TEXTS, "captions of CelebA-HQ"),
    )
    masks: dict[str, list[Path]] = defaultdict(list)
    for mask in sorted(files_below([folder / MASKS], (".png",), counts)):
        masks[_number(mask.stem.split("_")[0])].append(mask)
    named_texts = NamedFiles()
    for path in _images(images, counts):
        text = texts / f"{path.stem}.txt"
        named_texts.add(text)
        lines, own = read_lines(text, reject, limit="largest_text"), masks.pop(_number(path.stem), [])
        if lines is None:
            counts.parts += 1 + len(own)
            counts.rejected += 1 + len(own)
            continue
        counts.take(1 + len(own))
        text_of_all, captions = captions_as_text(lines), tuple(lines)
        yield Record(path.name, path, text_of_all, source="celeba-hq", masks=tuple(own), captions=captions)
    others = [mask.name for own in masks.values() for mask in own]
    counts.skip(f"masks without an image (such as {', '.join(others[:1])})", len(others))
    named_texts.count_others([texts], "texts without an image", counts, (".txt",))
    counts.check(folder)


def _number(stem: str) -> str:
    """The number of an image without leading zeros, as masks have them; any other name as it is."""
    return str(int(stem)) if stem.isascii() and stem.isdigit() else stem


def _images(folder: Path, counts: ReadCounts) -> list[Path]:
    """The images of a folder, in the order of their numbers; other files are counted."""
    found = []
    for path in folder.iterdir():
        if is_hidden(PurePath(path.name)):
            counts.skip(SYSTEM_FILES)
        elif path.suffix.lower() in IMAGE_ENDINGS:
            found.append(path)
        else:
            counts.skip("folders" if path.is_dir() else path.suffix.lower() or "without an ending")
    return sorted(found, key=lambda path: (len(path.stem), path.stem))
