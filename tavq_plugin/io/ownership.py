"""Overwrite and remove only our own files; a marker file in each folder lists their names.

- The marker maps each name to its maker: the command that may write, overwrite and remove it. A name may be a pattern;
  that of a folder ends in a slash: "demo.json", "step-*/".
- A name is taken if it exists in the folder, and another maker or none is listed for it.
- Strangers are files and folders that no marker lists.
- `former`: names of files by releases that wrote no markers, after the caller has recognised their content. They count
  as ours, and may lie below the folder: "checkpoints/step-*/state.safetensors".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tavq_plugin.io.atomic import intended, save_json

MARKER = ".tavq-plugin.json"
SAFETENSORS_TEMPORARY = ".tmp??????"  # left behind if a process is killed inside safetensors


def claims(folder: Path) -> dict[str, str]:
    """The names in the folder's marker, each with its maker; empty if there is no marker.

    Raises ValueError if the marker is damaged.
    """
    path = folder / MARKER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["names"]
        return {str(name): str(maker) for name, maker in found.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a marker of ours ({error!r}): give another --out, or delete it") from error


def refuse_taken(folder: Path, names: Iterable[str], maker: str, *, former: Sequence[str] = ()) -> None:
    """Raise FileExistsError if one of these names exists in the folder and does not belong to `maker`.

    A name without a maker in the marker belongs to `maker` if `former` lists it.
    """
    if not folder.is_dir():
        return
    names = list(names)
    # List the files before reading the marker: another process of the same run writes its marker before its files.
    existing = [path for path in sorted(folder.iterdir()) if any(_matches(path.name, name) for name in names)]
    listed = claims(folder)
    for path in existing:
        makers = {by for name, by in listed.items() if _is_listed(path, [name])}
        if maker in makers or (not makers and _is_listed(path, former)):
            continue
        raise FileExistsError(
            f"{path} is in the way: it belongs to {makers.pop()}; give another --out, or move it"
            if makers
            else f"{path} is in the way and was not made by {maker}: give another --out, or move it"
        )


def claim(folder: Path, names: Iterable[str], maker: str, *, former: Sequence[str] = ()) -> None:
    """List these names in the folder's marker as made by `maker`; the folder is created if it is missing.

    Raises FileExistsError like `refuse_taken`.
    """
    names = list(names)
    refuse_taken(folder, names, maker, former=former)
    folder.mkdir(parents=True, exist_ok=True)
    listed = claims(folder)
    for path in folder.iterdir():  # half-written files of a killed process
        if any(_matches(intended(path.name) or "", name) for name in names) and path.is_file():
            path.unlink(missing_ok=True)
    wanted = {**listed, **dict.fromkeys(names, maker)}
    if wanted != listed:
        save_json(folder / MARKER, {"about": "tavq-plugin may overwrite and remove these names.", "names": wanted})


def strangers(folder: Path, *, former: Sequence[str] = ()) -> list[Path]:
    """Everything in a folder, at any depth, that is not ours; if the folder is a link or a file, `folder` itself."""
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        return [folder]
    ours, found = claims(folder), []
    for path in sorted(folder.iterdir()):
        if not _is_listed(path, [*ours, *former]):
            found.append(path)
        elif path.is_dir():
            found += strangers(path, former=_below(path.name, former))
    return found


def refuse_strangers(folder: Path, *, former: Sequence[str] = ()) -> None:
    """Raise FileExistsError if a folder, which is to be replaced, holds strangers."""
    found = strangers(folder, former=former)
    if found:
        more = f" (one of {len(found)})" if found[1:] else ""
        raise FileExistsError(
            f"{found[0]}{more} is in the way and was not made by tavq-plugin: give another --out, or move it"
        )


def remove(folder: Path, *, former: Sequence[str] = ()) -> None:
    """Remove our files from a folder, and the folder if it is then empty; a link to a folder is left alone."""
    if folder.is_symlink() or not folder.is_dir():
        return
    ours = claims(folder)
    for path in sorted(folder.iterdir()):
        if path.name == MARKER or not _is_listed(path, [*ours, *former]):
            continue
        if path.is_dir():
            remove(path, former=_below(path.name, former))
        else:
            path.unlink()
    if {path.name for path in folder.iterdir()} <= {MARKER}:
        (folder / MARKER).unlink(missing_ok=True)  # last: after a kill, another run can still remove the rest
        folder.rmdir()


def fresh_folder(folder: Path, names: Iterable[str], maker: str, *, former: Sequence[str] = ()) -> Path:
    """Make an empty folder with a marker; our own files from a stopped run are removed first.

    Raises FileExistsError if the folder holds strangers, or is a link.
    """
    refuse_strangers(folder, former=former)
    remove(folder, former=former)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    claim(folder, [*names, SAFETENSORS_TEMPORARY], maker)
    return folder


def _matches(name: str, pattern: str) -> bool:
    """Whether a name matches the pattern up to its first slash."""
    return fnmatchcase(name, pattern.partition("/")[0])


def _is_listed(path: Path, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches this path; a pattern with a slash matches folders only, any other files only.

    A half-written file is listed if its target is.
    """
    name = intended(path.name) or path.name
    return name == MARKER or any(_matches(name, pattern) and path.is_dir() == ("/" in pattern) for pattern in patterns)


def _below(name: str, patterns: Iterable[str]) -> list[str]:
    """What follows the folder's name in each pattern for paths below that folder."""
    parts = [pattern.partition("/") for pattern in patterns]
    return [rest for first, _, rest in parts if rest and fnmatchcase(name, first)]
