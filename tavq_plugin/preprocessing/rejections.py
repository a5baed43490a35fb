"""The list of records that a run left out: `rejected.jsonl`, one JSON object per line, with file, line and reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tavq_plugin.data.records import Rejection
from tavq_plugin.io.atomic import save_bytes

REJECTED = "rejected.jsonl"  # its name in the folder of a store


def rejections_path(out: Path) -> Path:
    """The list that belongs to a file of captions: in the same folder, and named after it.

    >>> rejections_path(Path("captions.jsonl")).name, rejections_path(Path("captions.parquet")).name
    ('captions.rejected.jsonl', 'captions.parquet.rejected.jsonl')
    """
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.{REJECTED}")


def refuse_foreign_list(file: Path) -> None:
    """Raise FileExistsError if a foreign file has the name of the list."""
    if not os.path.lexists(file):
        return
    try:
        with file.open("rb") as lines:
            first = next(lines, None)
        if first is None or json.loads(first).keys() == set(Rejection._fields):
            return
    except (OSError, ValueError, AttributeError):
        pass
    raise FileExistsError(f"{file} is in the way: it is not a list of rejected records; give another --out, or move it")


def write_rejections(file: Path, lines: bytes) -> None:
    """Write the list; if there is nothing to list, the file is removed."""
    refuse_foreign_list(file)
    if lines:
        save_bytes(file, lines)
    else:
        file.unlink(missing_ok=True)


def rejection_line(rejection: Rejection) -> bytes:
    r"""One line of the list.

    >>> rejection_line(Rejection("a.csv", 3, "no id"))
    b'{"file": "a.csv", "line": 3, "reason": "no id"}\n'
    """
    return json.dumps(rejection._asdict(), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
