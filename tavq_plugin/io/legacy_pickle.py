"""Read foreign classes in old checkpoints as plain values, without importing or running what they name."""

from __future__ import annotations

import collections
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# classes that only hold data, in checkpoints of taming, LDM, LlamaGen and similar projects
CLASSES = (
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
# subclasses of dict
MAPPINGS = (
    "collections.defaultdict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
# types that are harmless with any arguments
TYPES = (bool, bytes, dict, float, int, list, str, tuple)


class PickledObject:
    """Stands for an object of a foreign class in an unpickled file: the class's name, arguments and state."""

    name = ""
    args: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *args: Any) -> PickledObject:
        """Keep the arguments."""
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __init__(self, *args: Any) -> None:
        """Accept any arguments; `__new__` keeps them."""

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes; a class with slots gives a pair of mappings."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            self.state |= part if isinstance(part, Mapping) else {} if part is None else {"state": part}


class PickledMapping:
    """Stands for a foreign dictionary; makes an OrderedDict, because torch's unpickler fills no other class."""

    def __new__(cls, *args: Any) -> collections.OrderedDict:  # type: ignore[misc]  # see above
        """Drop the arguments (such as a default factory); the unpickler adds the entries."""
        return collections.OrderedDict()


class _PlainUnpickler(pickle._Unpickler):  # the one written in Python: a hostile index cannot make it reserve memory
    """Reads values that need no class; the strings of Python 2 are UTF-8."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every global, before it is imported."""
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to values outside the file."""
        raise pickle.UnpicklingError("it refers to a value outside the file")


def read_plain_pickle(path: Path) -> Any:
    """The lists, dictionaries, strings and numbers of a plain pickle file, of any protocol; nothing in it is run.

    Bytes of Python 2 that are not UTF-8 become lone surrogates. Raises ValueError if the file names a class or a
    function, or is not a complete pickle.
    """
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8", errors="surrogateescape").load()
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} is refused: {error}, and only lists, dictionaries, strings and numbers are read from a "
                "pickle; nothing was run. If you trust its source, save its content as JSON"
            ) from error
        except (EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError) as error:
            raise ValueError(
                f"{path} is not a complete pickle ({type(error).__name__}: {error}); fetch it again"
            ) from error


def safe_globals(further: Sequence[str] = ()) -> list[Callable | tuple[Callable, str]]:
    """Pairs for `torch.serialization.safe_globals`: a class, and the allowed name that it stands for."""
    pairs: list[Callable | tuple[Callable, str]] = [
        (type("Foreign", (PickledObject,), {"name": n}), n) for n in (*CLASSES, *further)
    ]
    pairs += [(type("Foreign", (PickledMapping,), {}), name) for name in MAPPINGS]
    pairs += [(kind, f"{kind.__module__}.{kind.__name__}") for kind in TYPES]
    multiarray = import_module("numpy._core.multiarray")
    scalar, rebuild = multiarray.scalar, multiarray._reconstruct
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        pairs += [(scalar, f"{core}.scalar"), (rebuild, f"{core}._reconstruct")]
    pairs += [(np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray")]
    return pairs + [(kind, f"numpy.dtypes.{kind.__name__}") for kind in {type(np.dtype(c)) for c in "?bhilqBHILQefdSU"}]


class JsonContent(NamedTuple):
    """What JSON can hold of a checkpoint."""

    values: Any
    tensors_left_out: list[str]  # "name: shape" of each tensor and array with more than one value


def json_content(value: Any, *, without: Sequence[Any] = ()) -> JsonContent:
    """The values of a checkpoint that JSON can hold; the objects in `without` are skipped.

    >>> json_content({"a": (1, float("nan"), torch.tensor(2.0)), "b": torch.zeros(3)})
    JsonContent(values={'a': [1, 'nan', 2.0]}, tensors_left_out=['b: 3'])
    """
    converter = _JsonConverter({id(part) for part in without})
    values = converter.convert(value, "")
    return JsonContent({} if values is _SKIPPED else values, converter.left_out)


_SKIPPED = object()  # in place of weights, of tensors that are left out, and of references to an enclosing object


class _JsonConverter:
    """Converts nested values; collects the names of the tensors that it leaves out."""

    def __init__(self, skipped: set[int]) -> None:
        self.skipped = skipped
        self.left_out: list[str] = []
        self.open: set[int] = set()  # objects that enclose the current one; a reference back to them is skipped

    def convert(self, value: Any, at: str) -> Any:
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
                return self.convert(value.item(), at)
            self.left_out.append(f"{at}: {' '.join(map(str, value.shape))}")
            return _SKIPPED
        if isinstance(value, type):
            return getattr(value, "name", value.__name__)
        self.open.add(id(value))
        try:
            return self._container(value, at)
        finally:
            self.open.remove(id(value))

    def _container(self, value: Any, at: str) -> Any:
        if isinstance(value, PickledObject):
            for inner in ("_content", "_val"):  # omegaconf's containers and leaves
                if inner in value.state:
                    return self.convert(value.state[inner], at)
            if value.name.startswith("pathlib."):
                return "/".join(value.args).replace("//", "/")
            return (
                self.convert(value.state, at) if value.state or not value.args else self.convert(list(value.args), at)
            )
        if isinstance(value, Mapping):
            named = {str(self.convert(key, at)): part for key, part in value.items()}
            made = {key: self.convert(part, f"{at}.{key}" if at else key) for key, part in named.items()}
            return {key: part for key, part in made.items() if part is not _SKIPPED}
        if isinstance(value, list | tuple | set | frozenset | torch.Size):
            parts = [self.convert(part, f"{at}.{i}" if at else str(i)) for i, part in enumerate(value)]
            return [None if part is _SKIPPED else part for part in parts]
        return str(value)
