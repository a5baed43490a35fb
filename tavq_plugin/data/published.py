"""Which reader reads a folder as published; and the readers of CUB-200-2011, CelebA-HQ and folders of archives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from tavq_plugin.data.coco import from_coco, is_coco
from tavq_plugin.data.coco_qa import from_coco_qa, is_coco_qa
from tavq_plugin.data.daquar import daquar_sets, from_daquar
from tavq_plugin.data.records import (
    IMAGE_ENDINGS,
    Record,
    Reject,
    Rejection,
    captions_as_text,
    is_hidden,
    path_inside,
    raise_rejection,
    read_lines,
)
from tavq_plugin.data.refcoco import from_refcoco, refs_files
from tavq_plugin.data.tars import from_tars, is_archive

RecordReader = Callable[[Path, Reject], Iterator[Record]]
_CUB_TEXTS = ("text_c10", "text", "captions")
_CELEBA_TEXTS = ("celeba-caption", "text", "captions")
_CELEBA_IMAGES = ("CelebA-HQ-img", "images")
_MASKS = "CelebAMask-HQ-mask-anno"


def published_reader(folder: Path) -> RecordReader | None:
    """The reader for a folder, recognised by its typical files; None for any other folder.

    >>> published_reader(Path("/nonexistent")) is None
    True
    """
    if (folder / "images.txt").is_file() and (folder / "train_test_split.txt").is_file():
        return from_cub
    if is_coco(folder):
        return from_coco
    if refs_files(folder):
        return from_refcoco
    if is_coco_qa(folder):
        return from_coco_qa
    if daquar_sets(folder):
        return from_daquar
    if (folder / _CELEBA_IMAGES[0]).is_dir() or (folder / _CELEBA_TEXTS[0]).is_dir():
        return from_celeba_hq
    return from_tar_folder if archives_in(folder) else None


def from_cub(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """CUB-200-2011: images.txt, train_test_split.txt, bounding_boxes.txt, and ten captions per image in text_c10/."""
    split = {number: flag for number, flag, *_ in _columns(folder / "train_test_split.txt", reject)}
    boxes = {number: rest for number, *rest in _columns(folder / "bounding_boxes.txt", reject)}
    texts = _first_folder(folder, _CUB_TEXTS, "captions of CUB")
    for number, name, *_ in _columns(folder / "images.txt", reject):
        try:
            path = path_inside(folder, name)
        except ValueError as error:
            reject(Rejection(str(folder / "images.txt"), int(number), str(error)))
            continue
        lines = read_lines(texts / Path(name).with_suffix(".txt"), reject)
        if lines is not None:
            phrase = name.split("/")[0].partition(".")[2].replace("_", " ").lower() or "bird"
            box = ({"phrase": phrase, "xywh": [float(x) for x in boxes[number]]},) if number in boxes else ()
            yield Record(
                name, path, captions_as_text(lines), "train" if split.get(number) == "1" else "test", "cub", box,
                captions=tuple(lines),
            )  # fmt: skip


def from_celeba_hq(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """CelebA-HQ with caption files (0.jpg, 0.txt) and, if present, CelebAMask-HQ's masks."""
    images = _first_folder(folder, _CELEBA_IMAGES, "images of CelebA-HQ")
    texts = _first_folder(folder, _CELEBA_TEXTS, "captions of CelebA-HQ")
    masks: dict[int, list[Path]] = defaultdict(list)
    for path in sorted((folder / _MASKS).glob("*/*.png")):
        if path.stem.split("_")[0].isdigit():
            masks[int(path.stem.split("_")[0])].append(path)
    found = [
        path for path in images.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and not is_hidden(PurePath(path.name))
    ]
    for path in sorted(found, key=lambda path: (len(path.stem), path.stem)):
        lines = read_lines(texts / f"{path.stem}.txt", reject)
        if lines is not None:
            own = masks.get(int(path.stem), []) if path.stem.isdigit() else []
            text, captions = captions_as_text(lines), tuple(lines)
            yield Record(path.name, path, text, source="celeba-hq", masks=tuple(own), captions=captions)


def from_tar_folder(folder: Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """All archives of a folder, sorted by name."""
    return from_tars(archives_in(folder), reject)


def archives_in(folder: Path) -> list[Path]:
    """The archives directly in a folder, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_archive(path) and not is_hidden(PurePath(path.name)))


def _columns(file: Path, reject: Reject) -> Iterator[list[str]]:
    for line, text in enumerate(read_lines(file, reject) or [], 1):
        columns = text.split()
        if len(columns) >= 2:
            yield columns
        elif columns:
            reject(Rejection(str(file), line, f"{text!r} has one column; give a number and a value"))


def _first_folder(folder: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise FileNotFoundError(f"no {what} in {folder}: add one of the folders {', '.join(names)}")
