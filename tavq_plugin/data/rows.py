"""The rows of a table as dictionaries: JSON lines and arrays, comma or tab separated values, Parquet and Arrow."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from tavq_plugin.data.bounded_rows import bounded_rows, rows_at_once
from tavq_plugin.data.decode import MARK, decode_text
from tavq_plugin.data.read_counts import ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Reject, Rejection

LINES, VALUES, ARRAY, PARQUET = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".json",), (".parquet",)
TABLE_ENDINGS = (*LINES, *VALUES, *ARRAY, *PARQUET)
SEPARATORS = (",", ";", "\t", "|")

Row = tuple[int, dict[str, Any]]  # with its number in the file


def table_ending(file: Path) -> str | None:
    """The ending that says how a table is read, without .gz; None for any other file.

    >>> table_ending(Path("a.b.JSONL.gz")), table_ending(Path("a.parquet.gz")), table_ending(Path("a.txt"))
    ('.jsonl', None, None)
    """
    packed = file.suffix.lower() == ".gz"
    ending = Path(file.stem).suffix.lower() if packed else file.suffix.lower()
    return ending if ending in TABLE_ENDINGS and not (packed and ending in PARQUET) else None


def read_rows(file: Path, reject: Reject, settings: ReadSettings, counts: ReadCounts) -> Iterator[Row]:
    """Each row with its number. A row that cannot be read is rejected and counted; empty lines are no rows."""

    def refuse(number: int | None, reason: str) -> None:
        counts.parts += 1
        counts.rejected += 1
        reject(Rejection(str(file), number, reason))

    readers = {**dict.fromkeys(LINES, _json_lines), **dict.fromkeys(VALUES, _values), **dict.fromkeys(ARRAY, _array)}
    ending = table_ending(file)
    if ending in PARQUET:
        yield from _counted(_parquet(file, refuse, settings), counts)
        return
    with file.open("rb") as plain:
        packed = file.suffix.lower() == ".gz"
        content = cast("IO[bytes]", gzip.GzipFile(fileobj=plain) if packed else plain)
        try:
            yield from _counted(readers[str(ending)](content, refuse, settings), counts)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            refuse(None, f"truncated, or not compressed by gzip ({error}); fetch it again")


def _counted(rows: Iterator[Row], counts: ReadCounts) -> Iterator[Row]:
    for row in rows:
        counts.parts += 1
        yield row


def _lines(content: IO[bytes], refuse: Any, settings: ReadSettings) -> Iterator[tuple[int, bytes]]:
    """Lines up to the limit; a longer one is rejected, and never in memory as a whole."""
    number, most = 0, settings.largest_text
    while line := content.readline(most + 1):
        number += 1
        if len(line) <= most:
            yield number, line
            continue
        refuse(number, f"a line too long: {settings.excess(len(line), 'largest_text')}")
        while line and not line.endswith(b"\n"):
            line = content.readline(most)


def _json_lines(content: IO[bytes], refuse: Any, settings: ReadSettings) -> Iterator[Row]:
    for number, line in _lines(content, refuse, settings):
        try:
            text = decode_text(line)
        except ValueError as error:
            refuse(number, str(error))
            continue
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            refuse(number, f"not JSON ({error}); mend or delete the line")
        else:
            yield number, row


def _array(content: IO[bytes], refuse: Any, settings: ReadSettings) -> Iterator[Row]:
    whole = content.read(settings.largest_json + 1)
    if reason := settings.excess(len(whole), "largest_json"):
        refuse(None, f"{reason}; or write one object per line, as .jsonl, which has no limit")
        return
    try:
        rows = json.loads(decode_text(whole))
    except (ValueError, RecursionError) as error:
        refuse(None, f"not JSON ({error}); fetch it again")
        return
    if not isinstance(rows, list):
        found = f"an object with the fields {', '.join(list(rows)[:8])}" if isinstance(rows, dict) else "no list"
        refuse(None, f"holds {found}; give a list with one object per image")
        return
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield number, row
        else:
            refuse(number, f"entry {number} is no object; give one object per image")


def _texts_of_lines(content: IO[bytes], refuse: Any, settings: ReadSettings) -> Iterator[str]:
    """Lines that end in any way; bytes that are not UTF-8 become surrogates, by which their row is rejected later."""
    for _, line in _lines(content, refuse, settings):
        yield from filter(None, re.split(r"(?<=\r)(?!\n)", line.decode("utf-8", "surrogateescape")))


def _values(content: IO[bytes], refuse: Any, settings: ReadSettings) -> Iterator[Row]:
    """Rows of values; the separator is the one that the header has most of."""
    lines = _texts_of_lines(content, refuse, settings)
    header = next(lines, "").removeprefix(MARK)
    separator = max(SEPARATORS, key=header.count)  # the first of those with equal counts
    reader = csv.reader(chain([header], lines), delimiter=separator, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        refuse(1, f"the header is not CSV ({error}); mend it")
        return
    if len(set(names)) < len(names):
        refuse(1, f"the header names a column twice: {', '.join(names)}; rename one")
        return
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            refuse(reader.line_num, f"not CSV ({error}); mend or delete the line")
            continue
        if not values:
            continue
        if len(values) > len(names) and any(map(str.strip, values[len(names) :])):
            refuse(
                reader.line_num,
                f"{len(values)} values, but the header names {len(names)} columns: put a text that holds "
                f"{separator!r} into double quotes",
            )
            continue
        pairs = zip(names, map(str.strip, values), strict=False)
        yield reader.line_num, {name: value for name, value in pairs if name and value}


def _parquet(file: Path, refuse: Any, settings: ReadSettings) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            try:
                size = rows_at_once(table.metadata, file.stat().st_size, settings)
            except ValueError as error:
                refuse(None, str(error))
                return
            for batch in table.iter_batches(batch_size=size):
                yield from bounded_rows(batch, refuse, settings, number)
                number += len(batch)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f" after row {number}" if number else ""
        refuse(None, f"not Parquet, or truncated{place} ({error}); fetch it again")
