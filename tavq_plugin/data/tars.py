"""Read WebDataset archives: members with the same stem are one record; nothing is unpacked to the disk."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tavq_plugin.data.records import (
    IMAGE_ENDINGS,
    Record,
    Reject,
    Rejection,
    captions_as_text,
    has_surrogates,
    is_hidden,
    raise_rejection,
)

_TEXTS = (".txt", ".json")


def from_tars(files: Sequence[Path], reject: Reject = raise_rejection) -> Iterator[Record]:
    """Records of archives, in order; links, devices and names that lead out of the archive are rejected.

    Files of the operating system (.DS_Store, ._0.png, __MACOSX/) are skipped.
    """
    for file in files:
        key, parts = "", dict[str, bytes]()
        try:
            with tarfile.open(file, "r|*") as archive:
                for number, member in enumerate(archive, 1):
                    name = PurePosixPath(member.name)
                    if member.isdir():
                        continue
                    leads_out = name.is_absolute() or ".." in name.parts
                    if is_hidden(name) and not leads_out:
                        continue
                    if flaw := _flaw(member, name, leads_out=leads_out):
                        reject(Rejection(str(file), number, f"member {member.name!r}: {flaw}"))
                        continue
                    stem, _, ending = name.name.partition(".")
                    ending, stem = f".{ending.lower()}", str(name.with_name(stem))
                    if stem != key:
                        yield from _record(key, parts, file, reject)
                        key, parts = stem, {}
                    if ending in (*IMAGE_ENDINGS, *_TEXTS):
                        with archive.extractfile(member) as content:  # type: ignore[union-attr]  # a plain file
                            parts[ending] = content.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            if not isinstance(error, (tarfile.TarError, EOFError)) and error.errno is not None:
                raise
            reject(Rejection(str(file), None, f"truncated, or not an archive ({error}); fetch it again"))
        else:
            yield from _record(key, parts, file, reject)


def _flaw(member: tarfile.TarInfo, name: PurePosixPath, *, leads_out: bool) -> str | None:
    """Why a member cannot be part of a record, and the mend; None if it can."""
    if not member.isfile():
        return "not a plain file; only files are read"
    if leads_out:
        return "a name that leads out; only files inside are read"
    if not name.name:
        return "no usable name; give it one, such as 0.png"
    if has_surrogates(member.name):
        return "a name that is not UTF-8; rename it"
    return None


def _record(key: str, parts: dict[str, bytes], file: Path, reject: Reject) -> Iterator[Record]:
    """The record of the members with one stem; none if there are none, or if it is rejected."""
    image = next((parts[ending] for ending in IMAGE_ENDINGS if ending in parts), None)
    if not parts:
        return
    try:
        row = json.loads(parts[".json"].decode("utf-8-sig")) if ".json" in parts else {}
        lines = parts.get(".txt", b"").decode("utf-8-sig").splitlines()
        text = row.get("long_text") or row.get("text") or row.get("caption") or ""
        if not isinstance(text, str):
            raise ValueError("its text must be a string")
    except (ValueError, AttributeError, RecursionError) as error:
        reject(Rejection(str(file), None, f"record {key!r}: {error}"))
        return
    yield Record(id=key, image=image, text=text.strip() or captions_as_text(lines))
