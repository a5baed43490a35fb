"""Convert old checkpoints (.ckpt, .pt, .pth) to safetensors and JSON without running their content."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tavq_plugin.io.atomic import save_json, whole_file
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.io.legacy_pickle import json_content, safe_globals
from tavq_plugin.io.storable import storable

NOT_WEIGHTS = ("optim", "lr_sched", "callbacks", "scaler")  # entries whose names begin like these hold a run's state


def read_checkpoint(path: Path, *, allow: Sequence[str] = ()) -> Any:
    """Read a file of `torch.save` with `weights_only=True` and the allow-list of `legacy_pickle`.

    No foreign class is imported. `allow` lists more class names to read as plain values. Raises ValueError if the file
    names a global that is not allowed, or is not a complete checkpoint.
    """
    try:
        with torch.serialization.safe_globals(safe_globals(allow)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError) as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{path} is refused: it names {refused[1]}, which is not on the allow-list, and was not run. If it is "
                f"only a class whose content you want to read, give --allow {refused[1]}"
            ) from error
        # torch's message first advises to load the file unsafely, then gives the reason
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split()) or type(error).__name__
        raise ValueError(
            f"{path} is not a complete checkpoint that can be read safely: {reason}; fetch it again"
        ) from error


def state_dicts(content: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every mapping from names to tensors, with its path in the checkpoint; optimizers and callbacks are left out."""
    if not isinstance(content, Mapping) or not content or name.startswith(NOT_WEIGHTS):
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield name, content
        return
    for key, value in content.items():
        yield from state_dicts(value, f"{name}.{key}" if name else str(key))


def convert_checkpoint(
    source: Path, out: Path | None = None, *, allow: Sequence[str] = (), force: bool = False
) -> list[Path]:
    """Write OUT.safetensors (one OUT.NAME.safetensors per state dict, if there are several) and OUT.json.

    Each state dict keeps its keys, so it loads strictly wherever the old one did. The JSON holds the rest:
    configuration, steps, and what was left out. Each file is whole or absent. Returns the files.

    Args:
        source: The old checkpoint.
        out: Path of the new files, without an ending. Default: the source's path without its ending.
        allow: More class names to read as plain values.
        force: If true, existing files are overwritten.

    Raises:
        FileExistsError: A file exists, and `force` is false.
        ValueError: As in `read_checkpoint`; or the checkpoint has no state dict, or a sparse tensor.
    """
    out = out or source.with_suffix("")
    content = read_checkpoint(source, allow=allow)
    found = dict(state_dicts(content))
    if not found:
        raise ValueError(f"{source} holds no state dict (a mapping from names to tensors): give a file with weights")
    for name, weights in found.items():
        odd = [key for key, value in weights.items() if value.layout is not torch.strided]
        if odd:
            raise ValueError(
                f"{source}: {', '.join(odd)} of {name or 'the state dict'} is sparse: make it dense, or leave it out"
            )
    files = {
        name: out.with_name(f"{out.name}.{name}.safetensors" if len(found) > 1 else f"{out.name}.safetensors")
        for name in found
    }
    description = out.with_name(f"{out.name}.json")
    existing = [path.name for path in (*files.values(), description) if path.exists()]
    if existing and not force:
        raise FileExistsError(f"{', '.join(existing)} would be overwritten: give --out another name, or --force")
    rest = json_content(content, without=list(found.values()))
    with ExitStack() as open_files:  # all files get their names together, after the last one is written
        for name, path in files.items():
            save_file(storable(found[name]), open_files.enter_context(whole_file(path)))
    save_json(
        description,
        {
            "source": source.name,
            "sha256": sha256_of(source),
            "weights": {name or "all": path.name for name, path in files.items()},
            "not_finite": [
                f"{name}.{key}".lstrip(".")
                for name, weights in found.items()
                for key, value in weights.items()
                if value.is_floating_point() and not value.isfinite().all()
            ],
            "tensors_left_out": rest.tensors_left_out,
            "configuration": rest.values,
        },
    )
    return [*files.values(), description]
