"""Which reader reads a folder as published; and the reader of folders of archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from tavq_plugin.data import celeba_hq
from tavq_plugin.data.celeba_hq import from_celeba_hq
from tavq_plugin.data.coco import from_coco, is_coco
from tavq_plugin.data.coco_qa import from_coco_qa, is_coco_qa
from tavq_plugin.data.cub import ROWS, SPLIT, from_cub
from tavq_plugin.data.daquar import daquar_sets, from_daquar
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.records import Record, Reject, is_hidden, raise_rejection
from tavq_plugin.data.refcoco import from_refcoco, refs_files
from tavq_plugin.data.tars import from_tars, is_archive

RecordReader = Callable[[Path, Reject, ReadCounts], Iterator[Record]]


def published_reader(folder: Path) -> RecordReader | None:
    """The reader for a folder, recognised by its typical files; None for any other folder.

    >>> published_reader(Path("/nonexistent")) is None
    True
    """
    if (folder / ROWS).is_file() and (folder / SPLIT).is_file():
        return from_cub
    if is_coco(folder):
        return from_coco
    if refs_files(folder):
        return from_refcoco
    if is_coco_qa(folder):
        return from_coco_qa
    if daquar_sets(folder):
        return from_daquar
    if (folder / celeba_hq.IMAGES[0]).is_dir() or (folder / celeba_hq.TEXTS[0]).is_dir():
        return from_celeba_hq
    return from_tar_folder if archives_in(folder) else None


def from_tar_folder(
    folder: Path, reject: Reject = raise_rejection, counts: ReadCounts | None = None
) -> Iterator[Record]:
    """All archives of a folder, sorted by name."""
    return from_tars(archives_in(folder), reject, counts=counts)


def archives_in(folder: Path) -> list[Path]:
    """The archives directly in a folder, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_archive(path) and not is_hidden(PurePath(path.name)))
