"""Write files that are whole or absent: each is written under a fresh name in its folder, synced, then renamed.

The fresh file must not exist, so that no link is followed; its mode follows the process's umask.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from tavq_plugin.io.storable import storable


@contextmanager
def whole_file(target: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """A fresh file to write; it gets the target's name when the block ends, and is removed if the block fails.

    A private file can be read by its owner alone.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "a.txt") as partial:
    ...     _ = partial.write_text("whole")
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid4().hex[:12]}.tmp")
    handle = os.open(
        partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600 if private else 0o666
    )
    try:
        try:
            mode = os.fstat(handle).st_mode & 0o777
        finally:
            os.close(handle)
        yield partial
        os.chmod(partial, mode)  # safetensors replaces the file by one of mode 0600
        sync(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    sync(target.parent)


def intended(name: str) -> str | None:
    """The target's name, from the name of a half-written file; None for any other name.

    >>> intended(".a.txt.0123456789ab.tmp"), intended("a.txt")
    ('a.txt', None)
    """
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{12,32}\.tmp", name)
    return found and found[1]


def save_bytes(target: str | os.PathLike[str], content: bytes, *, private: bool = False) -> None:
    """Write bytes; the file is whole or absent. A private file can be read by its owner alone."""
    with whole_file(target, private=private) as partial:
        partial.write_bytes(content)


def save_text(target: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8; the file is whole or absent."""
    save_bytes(target, text.encode())


def save_json(target: str | os.PathLike[str], content: Any, *, private: bool = False) -> None:
    """Write indented JSON; the file is whole or absent. A private file can be read by its owner alone."""
    save_bytes(target, (json.dumps(content, indent=2) + "\n").encode(), private=private)


def read_json(path: str | os.PathLike[str], *, strict: bool = True) -> Any:
    """The content of a JSON file; None if there is no such file.

    If the content is not JSON, raises ValueError with the file's name; with `strict=False`, returns None instead.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        if not strict:
            return None
        raise ValueError(f"{path} is not JSON ({error}): delete it, or the folder") from error


def save_tensors(
    tensors: Mapping[str, Tensor], target: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, after `storable`; the file is whole or absent."""
    from safetensors.torch import save_file

    with whole_file(target) as partial:
        save_file(storable(tensors), partial, metadata=None if metadata is None else dict(metadata))


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a power cut; Windows cannot sync folders."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs only writable files
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def writable(folder: Path) -> Path:
    """Create the folder if it is missing, and return it; raises PermissionError if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(
            f"cannot write in {folder} ({error.strerror}): give --out a folder that you can write"
        ) from error
    return folder
