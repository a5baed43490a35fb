"""A marker file in a folder lists the names that are ours; nothing else is ever overwritten or removed.

A name may be a pattern, and the name of a folder ends in a slash: "demo.json", "step-*/". `former` lists files of
releases that wrote no markers, which the caller has recognised by their content; it may hold paths below the folder,
such as "checkpoints/step-*/state.safetensors".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tavq_plugin.io.atomic import intended, save_json

MARKER = ".tavq-plugin.json"
SAFETENSORS_TEMPORARY = ".tmp??????"  # what safetensors leaves behind when it is killed


def claims(folder: Path) -> dict[str, str]:
    """The names and patterns in the folder's marker, each with its maker; empty without a marker.

    Raises ValueError where the marker is damaged.
    """
    path = folder / MARKER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["names"]
        return {str(name): str(maker) for name, maker in found.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no marker of ours ({error!r}): give another --out, or delete it") from error


def refuse_taken(folder: Path, names: Iterable[str], maker: str, *, former: Sequence[str] = ()) -> None:
    """Raise FileExistsError if one of these names exists in the folder and was not made by `maker`."""
    if not folder.is_dir():
        return
    names = list(names)
    # Look at the files before the marker: another process of the same run writes the marker first.
    taken = [path for path in sorted(folder.iterdir()) if any(_named(path.name, name) for name in names)]
    made = claims(folder)
    for path in taken:
        makers = {by for name, by in made.items() if _ours(path, [name])}
        if maker in makers or (not makers and _ours(path, former)):
            continue
        raise FileExistsError(
            f"{path} is in the way: it belongs to {makers.pop()}; give another --out, or move it"
            if makers
            else f"{path} is in the way and was not made by {maker}: give another --out, or move it"
        )


def claim(folder: Path, names: Iterable[str], maker: str, *, former: Sequence[str] = ()) -> None:
    """Write to the folder's marker that `maker` may write, overwrite and remove these names; create the folder.

    Raises FileExistsError as `refuse_taken`.
    """
    names = list(names)
    refuse_taken(folder, names, maker, former=former)
    folder.mkdir(parents=True, exist_ok=True)
    made = claims(folder)
    for path in folder.iterdir():  # files that a killed process left half-written
        if any(_named(intended(path.name) or "", name) for name in names) and path.is_file():
            path.unlink(missing_ok=True)
    wanted = {**made, **dict.fromkeys(names, maker)}
    if wanted != made:
        save_json(folder / MARKER, {"about": "tavq-plugin may overwrite and remove these names.", "names": wanted})


def strangers(folder: Path, *, former: Sequence[str] = ()) -> list[Path]:
    """Everything in a folder, at any depth, that is not ours; the folder itself if it is a link or a file."""
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        return [folder]
    ours, found = claims(folder), []
    for path in sorted(folder.iterdir()):
        if not _ours(path, [*ours, *former]):
            found.append(path)
        elif path.is_dir():
            found += strangers(path, former=_below(path.name, former))
    return found


def refuse_strangers(folder: Path, *, former: Sequence[str] = ()) -> None:
    """Raise FileExistsError if a folder that is to be replaced holds something that is not ours."""
    found = strangers(folder, former=former)
    if found:
        more = f" ({len(found)} such)" if found[1:] else ""
        raise FileExistsError(
            f"{found[0]}{more} is in the way and was not made by tavq-plugin: give another --out, or move it"
        )


def remove(folder: Path, *, former: Sequence[str] = ()) -> None:
    """Remove what is ours in a folder, and the folder if nothing else is left; a link stays as it is."""
    if folder.is_symlink() or not folder.is_dir():
        return
    ours = claims(folder)
    for path in sorted(folder.iterdir()):
        if path.name == MARKER or not _ours(path, [*ours, *former]):
            continue
        if path.is_dir():
            remove(path, former=_below(path.name, former))
        else:
            path.unlink()
    if {path.name for path in folder.iterdir()} <= {MARKER}:
        (folder / MARKER).unlink(missing_ok=True)  # last, so that another run can remove the rest after a kill
        folder.rmdir()


def fresh_folder(folder: Path, names: Iterable[str], maker: str, *, former: Sequence[str] = ()) -> Path:
    """An empty folder with a marker; replaces what a stopped run of ours left there.

    Raises FileExistsError if something else, or a link, is there.
    """
    refuse_strangers(folder, former=former)
    remove(folder, former=former)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    claim(folder, [*names, SAFETENSORS_TEMPORARY], maker)
    return folder


def _named(name: str, pattern: str) -> bool:
    """Whether the name matches the first part of the pattern."""
    return fnmatchcase(name, pattern.partition("/")[0])


def _ours(path: Path, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches this name and kind: a pattern with a slash is for folders, any other for files.

    A half-written file counts as the file that it was to become.
    """
    name = intended(path.name) or path.name
    return name == MARKER or any(_named(name, pattern) and path.is_dir() == ("/" in pattern) for pattern in patterns)


def _below(name: str, patterns: Iterable[str]) -> list[str]:
    """The rest of each pattern that continues below a folder of this name."""
    parts = [pattern.partition("/") for pattern in patterns]
    return [rest for first, _, rest in parts if rest and fnmatchcase(name, first)]
