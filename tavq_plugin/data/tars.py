"""Read WebDataset archives: members with the same stem are one record; nothing is unpacked to the disk.

A stem is the name without its last ending, so IMG_2023.06.01.jpg is a record of its own. But where a.jpg is there,
a.seg.png is a part of record "a", as WebDataset has it.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tavq_plugin.data.decode import decode_text
from tavq_plugin.data.read_counts import SYSTEM_FILES, ReadCounts
from tavq_plugin.data.read_settings import ReadSettings
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
from tavq_plugin.data.row_texts import row_texts
from tavq_plugin.text.text_id import text_id

ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz")
FOLDERS, PARTS = "folders", "unread parts of a record, such as a.seg.png"
_TEXTS = (".txt", ".json")
_HELD = 8  # stems with dots that wait for a.jpg
_LARGEST_HEADER = 2**20  # bytes of a long name or of extended attributes


def is_archive(file: Path) -> bool:
    """Whether a file's name is that of an archive.

    >>> is_archive(Path("a.TAR.gz")), is_archive(Path("a.jsonl.gz"))
    (True, False)
    """
    return file.name.lower().endswith(ARCHIVE_ENDINGS)


def from_tars(
    files: Sequence[Path],
    reject: Reject = raise_rejection,
    settings: ReadSettings | None = None,
    counts: ReadCounts | None = None,
    *,
    archive_in_ids: bool | None = None,
) -> Iterator[Record]:
    """Records of archives, in order; links, devices and names that lead out of the archive are rejected.

    Files of the operating system (.DS_Store, ._0.png, __MACOSX/) are skipped and counted.

    Args:
        files: The archives.
        reject: Called with each broken member, record or archive.
        settings: The fields with id and text, and the largest members. Default: `ReadSettings()`.
        counts: What became of the members.
        archive_in_ids: Whether an id is "ARCHIVE/KEY", not "KEY" alone: two archives may have equal keys. Default: if
            there are several archives.
    """
    settings, counts = settings or ReadSettings(), counts or ReadCounts()
    named = len(files) > 1 if archive_in_ids is None else archive_in_ids
    for file in files:
        yield from _Reader(file, reject, settings, counts, file.name if named else None).records()
        counts.check(file)


@dataclass
class _Reader:
    """Reads one archive; holds the members of a few records at a time."""

    file: Path
    reject: Reject
    settings: ReadSettings
    counts: ReadCounts
    archive: str | None  # part of the ids
    base: str = ""  # name up to its first dot, of the stems that are held
    held: dict[str, dict[str, bytes]] = field(default_factory=dict)  # stem → ending → content

    def records(self) -> Iterator[Record]:
        try:
            with tarfile.open(self.file, "r|*", tarinfo=_BoundedHeader) as archive:
                for number, member in enumerate(archive, 1):
                    self.counts.parts += 1
                    yield from self._take(archive, number, member)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and not isinstance(error, tarfile.TarError) and error.errno is not None:
                raise
            for stem in [*self.held][:-1]:  # the last may be incomplete
                yield from self._record(stem, self.held.pop(stem))
            self.counts.parts += 1
            lost = self.counts.parts - self.counts.used - self.counts.rejected - self.counts.skipped.total()
            self._refuse(None, f"truncated, or not an archive ({error}); fetch it again", lost)
        else:
            yield from self._flush()

    def _take(self, archive: tarfile.TarFile, number: int, member: tarfile.TarInfo) -> Iterator[Record]:
        """Hold one member, and give the records that are complete before it."""
        name = PurePosixPath(member.name)
        leads_out = name.is_absolute() or ".." in name.parts
        if member.isdir():
            self.counts.skipped[FOLDERS] += 1
            return
        if is_hidden(name) and not leads_out:
            self.counts.skipped[SYSTEM_FILES] += 1
            return
        if flaw := _flaw(member, name, leads_out=leads_out):
            self._refuse(number, f"member {member.name!r}: {flaw}")
            return
        ending = name.suffix.lower()
        stem = text_id(str(name.with_suffix("")))
        base = text_id(str(name.with_name(name.name.partition(".")[0])))
        if base != self.base:
            yield from self._flush()
            self.base = base
        if base in self.held and stem != base:
            self.counts.skipped[PARTS] += 1
            return
        if ending not in (*IMAGE_ENDINGS, *_TEXTS):
            self.counts.skipped[f"{ending or 'without an ending'} in archives"] += 1
            return
        if (
            stem == base and base not in self.held and self.held
        ):  # what was held are parts of this record, as a.depth.png
            self.counts.skipped[PARTS] += sum(map(len, self.held.values()))
            self.held.clear()
        if stem not in self.held and len(self.held) >= _HELD:
            first = next(iter(self.held))
            yield from self._record(first, self.held.pop(first))
        limit = "largest_text" if ending in _TEXTS else "largest_image"
        if reason := self.settings.excess(member.size, limit):
            self._refuse(number, f"member {member.name!r}: {reason}")
            return
        parts = self.held.setdefault(stem, {})
        if ending in parts:
            self._refuse(number, f"member {member.name!r} comes twice; the first is kept")
            return
        with archive.extractfile(member) as content:  # type: ignore[union-attr]  # a plain file
            parts[ending] = content.read()

    def _refuse(self, number: int | None, reason: str, parts: int = 1) -> None:
        self.counts.rejected += parts
        self.reject(Rejection(str(self.file), number, reason))

    def _flush(self) -> Iterator[Record]:
        for stem in [*self.held]:
            yield from self._record(stem, self.held.pop(stem))

    def _record(self, stem: str, parts: dict[str, bytes]) -> Iterator[Record]:
        """The record of the members with one stem; none if it is rejected."""
        try:
            record = _record_of_members(stem, parts, self.settings, self.archive)
        except (ValueError, RecursionError) as error:
            self._refuse(None, f"record {stem!r}: {error}", len(parts))
            return
        extra = sum(ending in IMAGE_ENDINGS for ending in parts) - 1
        if extra > 0:
            self.counts.skipped["second images of a record"] += extra
        self.counts.used += len(parts) - max(0, extra)
        yield record


def _record_of_members(stem: str, parts: dict[str, bytes], settings: ReadSettings, archive: str | None) -> Record:
    row: Any = json.loads(decode_text(parts[".json"])) if ".json" in parts else {}
    if not isinstance(row, dict):
        raise ValueError("its .json holds no object")
    lines = decode_text(parts.get(".txt", b"")).splitlines()
    text, captions = row_texts(row, settings.text_field)
    key = stem if settings.id_field is None else row.get(settings.id_field)
    if key is None or key == "":
        raise ValueError(f"no field {settings.id_field!r} with the id in its .json")
    for string in (str(key), text, *captions):
        if has_surrogates(string):
            raise ValueError(f"not UTF-8: {string[:40]!r}; save the file as UTF-8")
    captions = captions or [line for line in lines if line.strip()]
    used = text or captions_as_text(captions)
    return Record(
        id=text_id(key, archive),
        image=next((parts[ending] for ending in IMAGE_ENDINGS if ending in parts), None),
        text=used,
        captions=tuple(captions),
        fields=() if used else (*map(str, row), *parts),
    )


class _BoundedHeader(tarfile.TarInfo):
    """A member whose headers may not outgrow memory: Python reads long names and attributes whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # the documented place to add checks
        header_only = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if self.type in (*header_only, tarfile.SOLARIS_XHDTYPE) and self.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, above the limit of {_LARGEST_HEADER:,}")
        return super()._proc_member(archive)  # type: ignore[misc]  # typeshed leaves it out


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
