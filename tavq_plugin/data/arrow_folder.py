"""Folders that Hugging Face's `save_to_disk` wrote: Arrow files with images inside; `datasets` is not needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tavq_plugin.data.bounded_rows import ROWS_AT_ONCE, bounded_rows
from tavq_plugin.data.decode import decode_text
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Record, Reject, Rejection, raise_rejection
from tavq_plugin.data.rows import Row
from tavq_plugin.data.tables import records_of_rows


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder holds a `Dataset` or a `DatasetDict` as `save_to_disk` writes them."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def from_saved_dataset(
    folder: Path,
    reject: Reject = raise_rejection,
    settings: ReadSettings | None = None,
    counts: ReadCounts | None = None,
) -> Iterator[Record]:
    """The rows of a saved data set, whose ids are those of the rows, or else their numbers; splits have a folder each.

    Raises ValueError if the files that describe it cannot be read.
    """
    settings, counts = settings or ReadSettings(), counts or ReadCounts()
    if not (folder / "dataset_dict.json").is_file():
        yield from _of_one(folder, reject, settings, counts)
        return
    for split in _described(folder / "dataset_dict.json", "splits"):
        for record in _of_one(folder / split, reject, settings, counts):
            yield replace(record, id=f"{split}/{record.id}", split=split)


def _of_one(folder: Path, reject: Reject, settings: ReadSettings, counts: ReadCounts) -> Iterator[Record]:
    names = _described(folder / "state.json", "_data_files")
    rows = _arrow_rows([folder / name for name in names], reject, settings, counts)
    yield from records_of_rows(rows, folder, folder, reject, settings, counts)
    counts.check(folder)


def _described(file: Path, key: str) -> list[str]:
    """Names of files or folders beside a file of descriptions."""
    try:
        listed = json.loads(decode_text(file.read_bytes()))[key]
        names = [entry["filename"] if isinstance(entry, dict) else entry for entry in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read ({error!r}); save the data set again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise ValueError(f"{file}: {name!r} is no name of a file beside it; save the data set again")
    return names


def _arrow_rows(files: list[Path], reject: Reject, settings: ReadSettings, counts: ReadCounts) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    number = 0
    for file in files:

        def refuse(row: int | None, reason: str, file: Path = file) -> None:
            counts.parts += 1
            counts.rejected += 1
            reject(Rejection(str(file), row, reason))

        try:
            with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
                for batch in stream:
                    batch.validate(full=True)  # Arrow trusts the offsets of a file; a bad one reads foreign memory
                    for start in range(0, len(batch), ROWS_AT_ONCE):
                        part = batch.slice(start, ROWS_AT_ONCE)
                        for row in bounded_rows(part, refuse, settings, number):
                            counts.parts += 1
                            yield row
                        number += len(part)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            refuse(None, f"not Arrow, or truncated ({error}); save the data set again")
