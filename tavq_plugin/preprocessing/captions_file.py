"""The JSON lines that captions are appended to: which ids it has, and where; one line per id when a run ends."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tavq_plugin.io.atomic import whole_file
from tavq_plugin.text.shard_file import id_hash

FIELDS = ("id", "text", "model", "revision", "prompt", "flag", "settings", "image_sha256")


class WrittenCaption(NamedTuple):
    """What is remembered of a line of the file."""

    offset: int
    flagged: bool
    image: str | None  # SHA-256 of the image's file, if the line has it


class CaptionsFile:
    """A file of captions that is open for appending; an incomplete last line is removed.

    Args:
        path: The file; it need not exist.
        source: What is written with every text, such as model, revision, prompt and settings.

    Raises:
        ValueError: A line is not a caption, or comes from another source.
    """

    def __init__(self, path: Path, source: Mapping[str, Any]) -> None:
        self.path, self.source = path, source
        self.written = captions_in_file(path, source)
        self._lines = path.open("ab")
        self._untidy = False  # whether an id has two lines

    def __enter__(self) -> CaptionsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line per caption; they are on the disk when this returns."""
        for row in rows:
            name = id_hash(row["id"])
            self._untidy |= name in self.written
            self.written[name] = _written(row, self._lines.tell())
            self._lines.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())

    def tidy(self, order: Mapping[int, int]) -> None:
        """Write the file anew with the latest line of each id, in the order given by each id's place.

        Ids without a place keep their order, after the others. A file that is tidy already is left as it is.
        """
        self._lines.close()
        after = len(order)
        places = sorted((order.get(name, after), line.offset) for name, line in self.written.items())
        offsets = [offset for _, offset in places]
        if not self._untidy and offsets == sorted(offsets):
            return
        private = not self.path.stat().st_mode & 0o077
        with (
            self.path.open("rb") as old,
            whole_file(self.path.resolve(), private=private) as partial,
            partial.open("wb") as new,
        ):
            for offset in offsets:
                old.seek(offset)
                new.write(old.readline())


def captions_in_file(path: Path, source: Mapping[str, Any]) -> dict[int, WrittenCaption]:
    """Hash of each id in the file → its latest line; an incomplete last line is removed from the file.

    Raises ValueError if a line is not a caption, or comes from another model, revision, prompt or setting.
    """
    if not path.exists():
        return {}
    written: dict[int, WrittenCaption] = {}
    with path.open("r+b") as file:
        end = 0  # of the complete lines
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                _require_caption_start(line, f"{path}, line {number}")
                break
            try:
                row = json.loads(line)
                name, found = row["id"], {key: row.get(key) for key in source}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not a caption ({error}); correct or delete the line"
                ) from error
            if found != source:
                theirs, ours = _differences(found, source)
                raise ValueError(
                    f"{path}, line {number} was written with {theirs}, but this run uses {ours}: texts of different "
                    "models, prompts or settings do not mix; give another --out"
                )
            written[id_hash(name)] = _written(row, end)
            end += len(line)
        file.truncate(end)
    return written


def caption_settings(captioner: Any, image_size: int | None) -> dict[str, Any]:
    """The settings that are written with every text."""
    own = getattr(captioner, "settings", {})
    return {**own, **({} if image_size is None else {"image_size": image_size})}


def image_sha256(image: Path | bytes | None) -> str | None:
    """Hash of an image's file; None if there is no image, or its file cannot be read.

    >>> image_sha256(b"")[:8], image_sha256(None)
    ('e3b0c442', None)
    """
    if image is None:
        return None
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    try:
        with image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _written(row: Mapping[str, Any], offset: int) -> WrittenCaption:
    image = row.get("image_sha256")
    return WrittenCaption(offset, bool(row.get("flag")), image if isinstance(image, str) else None)


def _differences(found: Mapping[str, Any], source: Mapping[str, Any]) -> tuple[str, str]:
    """What differs between two sources, in words: in the first, and in the second.

    >>> _differences({"model": "m", "settings": {"seed": 0}}, {"model": "m", "settings": {"seed": 1}})
    ('seed 0', 'seed 1')
    >>> _differences({"model": "m", "settings": None}, {"model": "n", "settings": {"seed": 1}})
    ("model 'm' and no settings on record", "model 'n' and seed 1")
    """

    def words(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
        flat, others = _flat(one), _flat(other)
        parts = [f"{key} {value!r}" for key, value in flat.items() if key not in others or others[key] != value]
        if not isinstance(one.get("settings", {}), Mapping):
            parts.append("no settings on record")
        return " and ".join(parts) or "its defaults"

    return words(found, source), words(source, found)


def _flat(source: Mapping[str, Any]) -> dict[str, Any]:
    settings = source.get("settings")
    own = {key: value for key, value in source.items() if key != "settings"}
    return {**own, **settings} if isinstance(settings, Mapping) else own


def _require_caption_start(cut: bytes, place: str) -> None:
    """Raise ValueError if an incomplete last line is not the start of a caption, and so must not be removed."""
    begin = b'{"id": "'
    if not (cut.startswith(begin) or begin.startswith(cut)):
        raise ValueError(
            f"{place} is not a caption and has no line end; correct or delete the line, or give another --out"
        )
