"""Read images with text from a folder, a table or archives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tavq_plugin.data.folders import from_folder
from tavq_plugin.data.published import published_reader
from tavq_plugin.data.records import Record, Reject, raise_rejection
from tavq_plugin.data.tables import TABLE_ENDINGS, from_table
from tavq_plugin.data.tars import from_tars


def read_records(place: str | Path, reject: Reject = raise_rejection) -> Iterator[Record]:
    """The records of a folder, a table (.jsonl, .csv, .parquet), a .tar or a folder of .tar files.

    A folder holds captions.jsonl, or a published data set, or images with .txt files of the same names; its files are
    sorted by name. Repeated ids are not detected, so that memory does not grow with the number of records.
    """
    place = Path(place)
    if place.is_dir():
        if (place / "captions.jsonl").is_file():
            return from_table(place / "captions.jsonl", reject)
        reader = published_reader(place)
        return reader(place, reject) if reader else from_folder(place, reject)
    if not place.is_file():
        raise FileNotFoundError(f"no file or folder {place}: give images with text, or a file of captions")
    if place.suffix == ".tar":
        return from_tars([place], reject)
    if place.suffix not in TABLE_ENDINGS:
        raise ValueError(f"{place}: cannot read {place.suffix!r} files; give one of {', '.join(TABLE_ENDINGS)}, .tar")
    return from_table(place, reject)
