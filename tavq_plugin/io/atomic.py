"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def writable(folder: Path) -> Path:
    """The folder, made; PermissionError with the mend where nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".trial"
        trial.touch()
        trial.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise PermissionError(
            f"cannot write in {folder} ({error.strerror}): give --out a folder that you can write"
        ) from error
    return folder


def save_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename: a file is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
