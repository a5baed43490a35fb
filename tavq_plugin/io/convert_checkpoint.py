"""Convert old checkpoints (.ckpt, .pt, .pth) to safetensors and JSON without running their content."""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tavq_plugin.io.atomic import save_json, whole_file
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.io.legacy_pickle import MOST_VALUES, json_content
from tavq_plugin.io.other_files import other_file
from tavq_plugin.io.pickle_bounds import PickleBomb, refuse_bombs
from tavq_plugin.io.storable import refuse_unstorable, storable
from tavq_plugin.io.unpickled_objects import may_hold_data, safe_globals

NOT_WEIGHTS = ("optim", "lr_sched", "callbacks", "scaler")  # entries whose names begin like these hold a run's state


MAX_GROWTH = 4.0  # how many times as large as the checkpoint its unpacked content may be
_SMALL = 2**26  # bytes; content below this size is never too large


def read_checkpoint(path: Path, *, allow: Sequence[str] = (), max_growth: float = MAX_GROWTH) -> Any:
    """Read a file of `torch.save` with `weights_only=True` and the allow-list of `unpickled_objects`.

    No foreign class is imported. `allow` lists more class names to read as plain values. Raises ValueError if the file
    names a global that is not allowed, is not a complete checkpoint but, say, a web page or a Git LFS pointer, or
    unpacks to more than `max_growth` times its size.
    """
    if what := other_file(path):
        raise ValueError(f"{path} is {what}")
    _refuse_large(path, _unpacked_size(path), max_growth, "unpacks to")
    _refuse_bombs(path, max_growth)
    reading: Sequence[tuple[Sequence[str], Sequence[str]]] = ((allow, ()), ((), allow))  # as objects; as dictionaries
    for number, (objects, mappings) in enumerate(reading, 1):
        try:
            with torch.serialization.safe_globals(safe_globals(objects, mappings=mappings)):
                return torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except _TORCH_RAISES as error:
            if allow and "SETITEM" in str(error) and number < len(reading):
                continue  # an allowed class is a dictionary
            raise _refusal(path, error) from error
    raise AssertionError("the last reading returns or raises")


_TORCH_RAISES = (
    pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError, ValueError, IndexError,
    MemoryError, OverflowError, AssertionError, struct.error, OSError,
)  # fmt: skip


def _refuse_bombs(path: Path, max_growth: float) -> None:
    try:
        refuse_bombs(path, max(_SMALL, max_growth * path.stat().st_size))
    except PickleBomb as error:
        raise ValueError(f"{path} is refused: {error}; or get the weights from a source that you trust") from error
    except FileNotFoundError:
        raise
    except (*_TORCH_RAISES, zipfile.BadZipFile, NotImplementedError, RecursionError) as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> ValueError:
    """The error to raise in place of torch's, which advises to load the file unsafely."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused and may_hold_data(refused[1]):
        return ValueError(
            f"{path} is refused: it names {refused[1]}, which is not on the allow-list, and was not run. If it is "
            f"only a class whose content you want to read, give --allow {refused[1]}"
        )
    if refused:
        return ValueError(
            f"{path} is refused: it names {refused[1]}, which is not on the allow-list, and was not run. No weights "
            "need this name, and it may be an attack: get the weights from a source that you trust"
        )
    reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split()) or type(error).__name__
    return ValueError(f"{path} is not a complete checkpoint that can be read safely: {reason}; fetch it again")


def _unpacked_size(path: Path) -> int:
    """Bytes of all members of a zip file, as its directory says; those of another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError):
        return path.stat().st_size


def _refuse_large(path: Path, size: int, max_growth: float, what: str) -> None:
    own = path.stat().st_size
    if size > max(_SMALL, max_growth * own):
        raise ValueError(
            f"{path} is refused: a file of {own:,} bytes that {what} {size:,} bytes, more than {max_growth:g} times "
            f"its size. If you trust it, give --max-growth {math.ceil(size / own)}"
        )


def state_dicts(content: Any) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The tensors of every state dict, with its path in the checkpoint; optimizers and callbacks are left out.

    Entries of a state dict that are no tensors (None, flags, `_extra_state`) are left out.
    """
    for name, entries in _state_dicts(content):
        yield name, {key: value for key, value in entries.items() if isinstance(value, Tensor)}


_MOST_MAPPINGS = 100_000  # mappings that are searched; some checkpoints refer to one mapping many times


def _state_dicts(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every state dict with its path in the checkpoint, in order."""
    searched, names = 0, set[str]()
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", content, ())]
    while waiting:
        name, value, enclosing = waiting.pop()
        if not isinstance(value, Mapping) or not value or name.startswith(NOT_WEIGHTS) or id(value) in enclosing:
            continue
        searched += 1
        if searched > _MOST_MAPPINGS or len(enclosing) > 100:
            raise ValueError("it holds too many nested dictionaries: save its weights alone")
        if _is_state_dict(value):
            while name in names:  # "a.b", and "b" in "a"
                name += "+"
            names.add(name)
            yield name, value
            continue
        inner = [(f"{name}.{key}" if name else str(key), part, (*enclosing, id(value))) for key, part in value.items()]
        waiting += reversed(inner)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping goes from names to tensors, apart from a few plain values and extra states of modules."""
    if not all(isinstance(key, str) for key in content):
        return False
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if len(tensors) == len(content):
        return True
    others_are_plain = all(
        isinstance(value, Tensor | bool | int | float | str | bytes | None) or key.endswith("_extra_state")
        for key, value in content.items()
    )
    return others_are_plain and 2 * len(tensors) >= len(content) and any(value.ndim for value in tensors)


def _file_name(name: str, taken: set[str]) -> str:
    """The name of a state dict as part of a file's name, such as no other in `taken`, to which it is added.

    >>> _file_name("ema/decay:0.99", {"ema_decay_0.99"})
    'ema_decay_0.99-2'
    """
    plain = re.sub(r"[^\w.-]+", "_", name)[:80].strip(".") or "_"
    made, number = plain, 1
    while made.lower() in taken:  # some file systems do not tell upper case from lower case
        number += 1
        made = f"{plain}-{number}"
    taken.add(made.lower())
    return made


def convert_checkpoint(
    source: Path,
    out: Path | None = None,
    *,
    allow: Sequence[str] = (),
    force: bool = False,
    max_growth: float = MAX_GROWTH,
    max_values: int = MOST_VALUES,
) -> list[Path]:
    """Write OUT.safetensors (one OUT.NAME.safetensors per state dict, if there are several) and OUT.json.

    Each state dict keeps its keys, so it loads strictly wherever the old one did. The JSON holds the rest:
    configuration, steps, and what was left out. What looks like a key is masked in it, home folders become ~, and only
    its owner can read it. Each file is whole or absent. Returns the files.

    Args:
        source: The old checkpoint.
        out: Path of the new files, without an ending. Default: the source's path without its ending.
        allow: More class names to read as plain values.
        force: If true, existing files are overwritten.
        max_growth: How many times as large as the source the tensors may become, if they exceed 64 MiB.
        max_values: Most values in the JSON; 10 characters of a text count as one more.

    Raises:
        FileExistsError: A file exists, and `force` is false.
        ValueError: As in `read_checkpoint`; or the checkpoint has no state dict, a sparse tensor, or exceeds a limit.
    """
    out = out or source.with_suffix("")
    content = read_checkpoint(source, allow=allow, max_growth=max_growth)
    try:
        mixed = dict(_state_dicts(content))
        rest = json_content(content, without=list(mixed.values()), most_values=max_values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    found = {name: {k: v for k, v in part.items() if isinstance(v, Tensor)} for name, part in mixed.items()}
    if not found:
        raise ValueError(f"{source} holds no state dict (a mapping from names to tensors): give a file with weights")
    for name, weights in found.items():
        odd = [key for key, value in weights.items() if value.layout is not torch.strided]
        if odd:
            raise ValueError(
                f"{source}: {', '.join(odd)} of {name or 'the state dict'} is sparse: make it dense, or leave it out"
            )
        refuse_unstorable(weights, f"{source}: {name or 'the state dict'}")
    size = sum(value.numel() * value.element_size() for weights in found.values() for value in weights.values())
    _refuse_large(source, size, max_growth, "holds tensors of")
    taken = set[str]()
    files = {
        name: out.with_name(
            f"{out.name}.{_file_name(name, taken)}.safetensors" if len(found) > 1 else f"{out.name}.safetensors"
        )
        for name in found
    }
    description = out.with_name(f"{out.name}.json")
    existing = [path.name for path in (*files.values(), description) if path.exists()]
    if existing and not force:
        raise FileExistsError(f"{', '.join(existing)} would be overwritten: give --out another name, or --force")
    described = {
        "source": source.name,
        "sha256": sha256_of(source),
        "weights": {name or "all": path.name for name, path in files.items()},
        "not_finite": [
            f"{name}.{key}".lstrip(".")
            for name, weights in found.items()
            for key, value in weights.items()
            if value.is_floating_point() and not _is_finite(value)
        ],
        "not_tensors": [
            f"{name}.{key}: {type(value).__name__}".lstrip(".")
            for name, part in mixed.items()
            for key, value in part.items()
            if not isinstance(value, Tensor)
        ],
        "tensors_left_out": rest.tensors_left_out,
        "values_left_out": rest.values_left_out,
        "masked": rest.masked,
        "configuration": rest.values,
    }
    with ExitStack() as open_files:  # all files get their names together, after the last one is written
        for name, path in files.items():
            save_file(storable(found[name]), open_files.enter_context(whole_file(path)))
    save_json(description, described, private=True)
    return [*files.values(), description]


def _is_finite(value: Tensor) -> bool:
    if value.element_size() == 1:  # float8: torch has no isfinite of it
        value = value.float()
    return bool(value.isfinite().all())
