"""Files of a published data set that none of its rows names: they are counted, so that none vanishes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from tavq_plugin.data.read_counts import SYSTEM_FILES, ReadCounts
from tavq_plugin.data.records import IMAGE_ENDINGS, is_hidden


class NamedFiles:
    """The files that rows have named."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}  # as named → without links
        self._places: set[tuple[str, str]] = set()  # folder without links, and file name

    def add(self, file: Path) -> None:
        """Keep that a row names this file."""
        self._places.add(self._place(file))

    def count_others(
        self, folders: Iterable[Path], kind: str, counts: ReadCounts, endings: Sequence[str] = IMAGE_ENDINGS
    ) -> None:
        """Count the files below these folders that have one of the endings and were not added, with one as example."""
        others = [file.name for file in files_below(folders, endings, counts) if self._place(file) not in self._places]
        if others:
            counts.skip(f"{kind} (such as {others[0]})", len(others))

    def _place(self, file: Path) -> tuple[str, str]:
        folder, name = os.path.split(file)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return self._folders[folder], name


def files_below(folders: Iterable[Path], endings: Sequence[str], counts: ReadCounts) -> Iterator[Path]:
    """Files with one of the endings; system files are counted. A folder that two links lead to is visited once."""
    visited: set[str] = set()
    waiting = [folder for folder in folders if folder.is_dir()]
    while waiting:
        folder = waiting.pop(0)
        place = os.path.realpath(folder)
        if place in visited:
            continue
        visited.add(place)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if is_hidden(PurePath(entry.name)):
                counts.skip(SYSTEM_FILES)
            elif entry.is_dir():
                waiting.append(Path(entry.path))
            elif os.path.splitext(entry.name)[1].lower() in endings:
                yield Path(entry.path)


def first_folder(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """The first of these folders that is there; raises FileNotFoundError if none is."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise FileNotFoundError(f"no {what} in {folder}: add one of the folders {', '.join(names)}")
