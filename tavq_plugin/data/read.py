"""Read images with text from a folder, a table or archives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from tavq_plugin.data.arrow_folder import from_saved_dataset, is_saved_dataset
from tavq_plugin.data.folders import from_folder
from tavq_plugin.data.published import archives_in, from_tar_folder, published_reader
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Record, Reject, Rejection, is_hidden, raise_rejection
from tavq_plugin.data.row_texts import fields_understood
from tavq_plugin.data.rows import TABLE_ENDINGS, table_ending
from tavq_plugin.data.tables import from_table
from tavq_plugin.data.tars import ARCHIVE_ENDINGS, from_tars, is_archive
from tavq_plugin.io.counted import counted
from tavq_plugin.text.text_id import text_id

CAPTIONS = ("captions.jsonl", "captions.jsonl.gz")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an image folder, as Hugging Face has it


def read_records(
    place: str | Path,
    reject: Reject = raise_rejection,
    settings: ReadSettings | None = None,
    counts: ReadCounts | None = None,
    *,
    images: bool = False,
) -> Iterator[Record]:
    """The records of a folder, a table, an archive, or a folder of archives or of Parquet files.

    A folder holds captions.jsonl, or metadata.jsonl, or a published data set, or a data set of `save_to_disk`, or
    images with .txt files of the same names; its files are sorted by name. Repeated ids are not detected, so that
    memory does not grow with the number of records.

    Args:
        place: The folder or file.
        reject: Called with each record that cannot be read. Default: raise ValueError.
        settings: The fields with id and text, and the limits. Default: `ReadSettings()`.
        counts: What became of each row, member and file.
        images: If true, records without an image are rejected, and a table's ids are its image names.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: The file is of no kind that is read.
    """
    place, settings, counts = Path(place), settings or ReadSettings(), counts or ReadCounts()
    records = _records(place, reject, settings, counts, images)
    return _with_images(records, place, reject) if images else records


def _records(place: Path, reject: Reject, settings: ReadSettings, counts: ReadCounts, images: bool) -> Iterator[Record]:
    if place.is_dir():
        for name in CAPTIONS:
            if (place / name).is_file():
                return from_table(place / name, reject, settings, counts, images=images)
        if tables := _metadata(place):
            return _from_metadata(place, tables, reject, settings, counts, images)
        if is_saved_dataset(place):
            return from_saved_dataset(place, reject, settings, counts)
        reader = published_reader(place)
        if reader is from_tar_folder:
            return from_tars(archives_in(place), reject, settings, counts)
        if reader:
            return reader(place, reject, counts)
        if tables := _parquets(place):
            return _from_parquets(tables, reject, settings, counts, images)
        return from_folder(place, reject, counts, settings)
    if not place.is_file():
        raise FileNotFoundError(f"no file or folder {place}: give images with text, or a file of captions")
    if is_archive(place):
        return from_tars([place], reject, settings, counts)
    if table_ending(place) is None:
        known = ", ".join((*TABLE_ENDINGS, *ARCHIVE_ENDINGS))
        raise ValueError(f"{place}: cannot read {place.suffix!r} files; give one of {known}; text files may be .gz")
    return from_table(place, reject, settings, counts, images=images)


def _metadata(folder: Path) -> list[Path]:
    """The tables of an image folder: one in the folder, or one in each of its subfolders (train/, test/)."""
    for base in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        if found := [path / name for path in base for name in METADATA if (path / name).is_file()]:
            return found
    return []


def _from_metadata(
    folder: Path, tables: Iterable[Path], reject: Reject, settings: ReadSettings, counts: ReadCounts, images: bool
) -> Iterator[Record]:
    for table in tables:
        inner = table.parent.relative_to(folder)
        for record in from_table(table, reject, settings, counts, images=images):
            if inner.parts:
                record = replace(record, id=text_id(record.id, inner.as_posix()), split=record.split or inner.name)
            yield record


def _parquets(folder: Path) -> list[Path]:
    """Parquet files in a folder or its data/, as Hugging Face keeps them; none if the folder has images of its own."""
    for base in (folder, folder / "data"):
        if base.is_dir():
            found = sorted(path for path in base.glob("*.parquet") if not is_hidden(PurePath(path.name)))
            if found:
                return found
    return []


def _from_parquets(
    tables: list[Path], reject: Reject, settings: ReadSettings, counts: ReadCounts, images: bool
) -> Iterator[Record]:
    for table in tables:
        for record in from_table(table, reject, settings, counts, images=images):
            yield record if len(tables) == 1 else replace(record, id=text_id(record.id, table.name))


def _with_images(records: Iterable[Record], place: Path, reject: Reject) -> Iterator[Record]:
    for number, record in enumerate(records, 1):
        if record.image is None:
            reason = f"record {record.id!r} has no image; add it or delete the record"
            reject(Rejection(str(place), record.line or number, reason))
        else:
            yield record


def without_text_reason(place: Path, number: int, fields: Iterable[str], settings: ReadSettings | None = None) -> str:
    """What to say if no record has a text: the fields seen, those understood, and the mend."""
    settings = settings or ReadSettings()
    fields = dict.fromkeys(fields)
    seen = ", ".join(list(fields)[:20]) or "images alone"
    tables = []
    if place.is_dir():
        tables = [path.name for path in sorted(place.iterdir()) if path.is_file() and table_ending(path)]
    flagged = (
        " Texts with a flag are not used; tavq caption --retry-flagged asks for them again." if "flag" in fields else ""
    )
    instead = f" The folder holds {', '.join(tables[:4])}: give that file as --data." if tables else ""
    return (
        f"none of the {counted(number, 'records')} of {place} has a text. Fields seen: {seen}. Fields understood: "
        f"{fields_understood(settings.text_field)}; or a .txt file beside each image.{instead}{flagged} Name the field "
        "with the text by --text-field, or write texts first with tavq caption"
    )
