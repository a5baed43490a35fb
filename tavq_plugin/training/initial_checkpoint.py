"""The checkpoint that a run starts from (`init` in a recipe): its file, its hash in the run's settings, its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from tavq_plugin.io.convert_checkpoint import read_checkpoint
from tavq_plugin.io.file_hash import sha256_of

HASH = "init_sha256"  # name in saved settings of the SHA-256 of the checkpoint's file
FINISHED = ("history.json", "metrics.json")  # a run's folder holds one of these when it is finished


def checkpoint_file(init: str) -> Path:
    """The file of initial weights: `init` itself, or host.safetensors of the finished run in the folder `init`.

    Raises FileNotFoundError if there is none, and ValueError for a folder that is not that of a finished run.
    """
    path = Path(init)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"no checkpoint {init}: init (--init) takes a .safetensors, .ckpt, .pt or .pth file, or the folder of a "
            "finished run"
        )
    if (path / "compare.json").exists() or (path / "shared.json").exists():
        raise ValueError(f"{init} is a comparison and holds several runs: give the folder of one, {init}/METHOD/seedN")
    if not (path / "settings.json").exists():
        raise ValueError(f"{init} is no run, as it has no settings.json: give a checkpoint's file, or a run's folder")
    if not any((path / name).exists() for name in FINISHED):
        raise ValueError(f"{init} is not finished: give the command that made it again, and it resumes")
    if not (path / "host.safetensors").is_file():
        raise FileNotFoundError(f"{init} has no host.safetensors: train the run again")
    return path / "host.safetensors"


def checkpoint_settings(init: str, former: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What saved settings hold beside `init`: the SHA-256 of its file; nothing if `init` is empty.

    If the file is gone, the hash in `former`, settings that were saved with the same `init`, is taken instead. Without
    them, raises as `checkpoint_file`.
    """
    if not init:
        return {}
    try:
        file = checkpoint_file(init)
    except FileNotFoundError:
        if former is not None and former.get("init") == init and HASH in former:
            return {HASH: str(former[HASH])}
        raise
    status = file.stat()
    return {HASH: _sha256_of_version(file.resolve(), status.st_size, status.st_mtime_ns)}


def read_weights(init: str, *, allow: Sequence[str] = ()) -> Any:
    """What the checkpoint holds; tensors on the CPU. No code in it is run, and no foreign class imported.

    Raises as `checkpoint_file`, and ValueError if the file is damaged or names a class that `allow` does not list.
    """
    file = checkpoint_file(init)
    if file.suffix != ".safetensors":
        return read_checkpoint(file, allow=allow)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}): fetch it again") from error


@lru_cache(maxsize=16)
def _sha256_of_version(file: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file, computed again only if its size or time has changed."""
    return sha256_of(file)
