"""Foreign classes in old checkpoints, read as plain records: nothing that a name stands for is imported or run."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# classes that hold data alone in checkpoints of taming, LDM, LlamaGen and their like; read as records
RECORDS = (
    "argparse.Namespace",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "typing.Any",
    "typing.Dict",
    "typing.List",
    "typing.Union",
)
# dictionaries of another class
MAPPINGS = (
    "collections.defaultdict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
# types that come to no harm whatever they are called with
TYPES = (bool, bytes, dict, float, int, list, str, tuple)


class PickledObject:
    """What stands in an unpickled file for an object of a foreign class: its name, arguments and state."""

    name = ""

    def __new__(cls, *args: Any) -> PickledObject:
        """Keeps the arguments."""
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __init__(self, *args: Any) -> None:
        """Called where a pickle calls the class; `__new__` has kept the arguments."""

    def __setstate__(self, state: Any) -> None:
        """The object's attributes; slots come in a pair."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            self.state |= part if isinstance(part, Mapping) else {} if part is None else {"state": part}


class Entries:
    """What stands for a foreign dictionary: an OrderedDict, as torch's unpickler fills no other."""

    def __new__(cls, *args: Any) -> collections.OrderedDict:
        """Arguments (a default's factory) are dropped; the entries follow."""
        return collections.OrderedDict()


def allowed(further: Sequence[str] = ()) -> list[tuple[Callable, str]]:
    """Pairs for `torch.serialization.safe_globals`: what stands for a name, and the name."""
    pairs: list[tuple[Callable, str]] = [
        (type("Foreign", (PickledObject,), {"name": n}), n) for n in (*RECORDS, *further)
    ]
    pairs += [(type("Foreign", (Entries,), {}), name) for name in MAPPINGS]
    pairs += [(kind, f"{kind.__module__}.{kind.__name__}") for kind in TYPES]
    scalar, rebuild = np._core.multiarray.scalar, np._core.multiarray._reconstruct
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        pairs += [(scalar, f"{core}.scalar"), (rebuild, f"{core}._reconstruct")]
    pairs += [(np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray")]
    return pairs + [(kind, f"numpy.dtypes.{kind.__name__}") for kind in {type(np.dtype(c)) for c in "?bhilqBHILQefdSU"}]


def plain(value: Any, left_out: list[str], *, without: Sequence[Any] = (), at: str = "") -> Any:
    """What JSON can hold of a checkpoint; larger tensors and arrays are named in `left_out`, `without` is skipped.

    >>> plain({"a": (1, float("nan"), torch.tensor(2.0)), "b": torch.zeros(3)}, left := [])
    {'a': [1, 'nan', 2.0]}
    >>> left
    ['b: 3']
    """
    made = _Plain(left_out, {id(part) for part in without}).of(value, at)
    return {} if made is _SKIPPED else made


_SKIPPED = object()  # weights, left-out tensors, references back


class _Plain:
    def __init__(self, left_out: list[str], skipped: set[int]) -> None:
        self.left_out, self.skipped, self.open = left_out, skipped, set()

    def of(self, value: Any, at: str) -> Any:
        if id(value) in self.skipped or id(value) in self.open:
            return _SKIPPED
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor | np.ndarray):
            if (value.numel() if isinstance(value, Tensor) else value.size) == 1:
                return self.of(value.item(), at)
            self.left_out.append(f"{at}: {' '.join(map(str, value.shape))}")
            return _SKIPPED
        if isinstance(value, type):
            return getattr(value, "name", value.__name__)
        self.open.add(id(value))
        try:
            return self._inside(value, at)
        finally:
            self.open.remove(id(value))

    def _inside(self, value: Any, at: str) -> Any:
        if isinstance(value, PickledObject):
            for inner in ("_content", "_val"):  # omegaconf's containers and leaves
                if inner in value.state:
                    return self.of(value.state[inner], at)
            if value.name.startswith("pathlib."):
                return "/".join(value.args).replace("//", "/")
            return self.of(value.state, at) if value.state or not value.args else self.of(list(value.args), at)
        if isinstance(value, Mapping):
            named = {str(self.of(key, at)): part for key, part in value.items()}
            made = {key: self.of(part, f"{at}.{key}" if at else key) for key, part in named.items()}
            return {key: part for key, part in made.items() if part is not _SKIPPED}
        if isinstance(value, list | tuple | set | frozenset | torch.Size):
            made = [self.of(part, f"{at}.{i}" if at else str(i)) for i, part in enumerate(value)]
            return [None if part is _SKIPPED else part for part in made]
        return str(value)
