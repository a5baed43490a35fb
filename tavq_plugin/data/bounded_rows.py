"""Rows of Parquet and Arrow as dictionaries; a row or a table that outgrows the limits never becomes Python objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tavq_plugin.data.read_settings import ReadSettings

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 64  # few, since a row may hold an image
_MOST_GROWTH = 200  # how often a large row group may outgrow its file; Parquet of text shrinks 2 to 20 times
_GROWS_FREELY = 4  # times `largest_image`: bytes up to which a row group may grow as it likes


def bounded_rows(
    batch: pyarrow.RecordBatch, refuse: Callable[[int, str], None], settings: ReadSettings, before: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number, counted from `before` + 1; a row above the limits goes to `refuse`.

    The bytes of a row are counted in Arrow's memory: columns with raw bytes, which hold images, may together have
    `largest_image`, and all others `largest_text`.
    """
    names = batch.schema.names
    with_bytes = [name for name in names if _has_bytes(batch.schema.field(name).type)]
    others = [name for name in names if name not in with_bytes]
    if len(set(names)) == len(names) and batch.nbytes > min(settings.largest_text, settings.largest_image):
        parts = ((batch.select(with_bytes), "largest_image"), (batch.select(others), "largest_text"))
        for row in range(len(batch)):
            sizes = ((part.slice(row, 1).nbytes if part.num_columns else 0, limit) for part, limit in parts)
            if reason := next(filter(None, (settings.excess(size, limit) for size, limit in sizes)), None):
                refuse(before + row + 1, f"a row too large: {reason}")
            else:
                yield before + row + 1, batch.slice(row, 1).to_pylist()[0]
        return
    yield from enumerate(batch.to_pylist(), before + 1)


def _has_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def rows_at_once(metadata: Any, file_size: int, settings: ReadSettings) -> int:
    """How many rows of a Parquet file to read together, so that they fit in memory whatever they hold.

    A value may be stored once and repeated in every row, so a row may have as many bytes as its row group says it has.
    Raises ValueError if a row group outgrows the file beyond measure. The sizes of single columns are not looked at:
    pyarrow ends the process if a damaged file does not describe them well.
    """
    largest = max([1, *(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))])
    if largest > _GROWS_FREELY * settings.largest_image and largest > _MOST_GROWTH * file_size:
        raise ValueError(
            f"a row group grows from at most {file_size:,} to {largest:,} bytes, more than {_MOST_GROWTH} times and "
            f"above {_GROWS_FREELY} × largest_image={settings.largest_image:,}; write the file again, or raise that "
            "limit if you trust it"
        )
    return min(ROWS_AT_ONCE, max(1, settings.largest_image // largest))
