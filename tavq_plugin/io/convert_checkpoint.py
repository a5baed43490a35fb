"""Old checkpoints (.ckpt, .pt, .pth), read without running what is in them, as safetensors and JSON."""

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
from tavq_plugin.io.legacy_pickle import allowed, plain
from tavq_plugin.io.storable import storable

NOT_WEIGHTS = ("optim", "lr_sched", "callbacks", "scaler")  # beginnings of entries that hold a run's state


def read_checkpoint(path: Path, *, allow: Sequence[str] = ()) -> Any:
    """What `torch.save` wrote, by `weights_only=True` and the allow-list of `foreign`; nothing foreign is imported.

    allow: further class names to read as plain records. Raises ValueError naming the global that is not allowed, or
    where the file is no whole checkpoint.
    """
    try:
        with torch.serialization.safe_globals(allowed(allow)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError) as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise ValueError(
                f"{path} is refused: it names {named[1]}, which is not on the allow-list, and was not run. If it is "
                f"but a class whose content you want as a record, give --allow {named[1]}"
            ) from error
        # what is wrong comes after torch's advice to load the file unsafely
        said = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split()) or type(error).__name__
        raise ValueError(f"{path} is no whole checkpoint that reads safely: {said}") from error


def state_dicts(content: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every mapping of names to tensors alone, with its place; optimizers and callbacks are left out."""
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
    """Write OUT.safetensors (OUT.NAME.safetensors where there are several) and OUT.json; returns the files.

    out: without an ending; default: the source's name, beside it. Each state dict keeps its keys, so it loads
    strictly where the old one did. The JSON holds the rest: configuration, steps, and what was left out. A file is
    whole or not there. Raises FileExistsError where one exists and not `force`, ValueError as `read_checkpoint`.
    """
    out = out or source.with_suffix("")
    content = read_checkpoint(source, allow=allow)
    found = dict(state_dicts(content))
    if not found:
        raise ValueError(f"{source} holds no state dict (a mapping of names to tensors)")
    for name, weights in found.items():
        odd = [key for key, value in weights.items() if value.layout is not torch.strided]
        if odd:
            raise ValueError(f"{source}: {', '.join(odd)} of {name or 'the state dict'} is sparse, not to be kept so")
    named = {
        name: out.with_name(f"{out.name}.{name}.safetensors" if len(found) > 1 else f"{out.name}.safetensors")
        for name in found
    }
    description = out.with_name(f"{out.name}.json")
    there = [path.name for path in (*named.values(), description) if path.exists()]
    if there and not force:
        raise FileExistsError(f"{', '.join(there)} would be overwritten: give --out another name, or --force")
    left_out: list[str] = []
    rest = plain(content, left_out, without=list(found.values()))
    with ExitStack() as whole:
        for name, path in named.items():  # they take their names together, once all are written
            save_file(storable(found[name]), whole.enter_context(whole_file(path)))
    save_json(
        description,
        {
            "source": source.name,
            "sha256": sha256_of(source),
            "weights": {name or "all": path.name for name, path in named.items()},
            "not_finite": [
                f"{name}.{key}".lstrip(".")
                for name, weights in found.items()
                for key, value in weights.items()
                if value.is_floating_point() and not value.isfinite().all()
            ],
            "tensors_left_out": left_out,
            "configuration": rest,
        },
    )
    return [*named.values(), description]
