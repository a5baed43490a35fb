"""What is made of the classes that an old checkpoint names: plain values; nothing of theirs is imported or run."""

from __future__ import annotations

import collections
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

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
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "types.SimpleNamespace",
    "typing.Any",
    "typing.Dict",
    "typing.List",
    "typing.Union",
)
# subclasses of dict
MAPPINGS = (
    "addict.addict.Dict",
    "collections.defaultdict",
    "easydict.EasyDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
# types that are harmless with any arguments, and not larger than these
TYPES = (bool, dict, float, int, list, tuple)
# classes of text
TEXTS = ("builtins.str", "torch.torch_version.TorchVersion")
_DATA_OF_PYTHON = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "types", "uuid"}


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


class PickledArray(np.ndarray):
    """Stands for numpy.ndarray; its memory comes from the values in the file, never from a size that it names."""

    def __new__(cls, shape: Any = (0,), *_: Any) -> PickledArray:
        """An empty array, which `__setstate__` fills."""
        if tuple(shape) != (0,):
            raise pickle.UnpicklingError("it asks for an array without giving its values")
        return super().__new__(cls, (0,))


class PickledText:
    """Stands for str and its subclasses; makes the text that the file holds, never a text of other values."""

    name = "str"

    def __new__(cls, content: Any = "") -> str:  # type: ignore[misc]  # see above
        """The text itself."""
        if not isinstance(content, str):
            raise pickle.UnpicklingError(f"it asks for a text of {type(content).__name__}, not of a text")
        return content


def _array(_: Any, shape: Any, *__: Any) -> PickledArray:
    return PickledArray(shape)


def _bytes(content: Any = b"", *rest: Any) -> bytes:
    """Bytes that the file holds; a number would make as many zeros."""
    if isinstance(content, int):
        raise pickle.UnpicklingError(f"it asks for {content:,} bytes without giving their values")
    return bytes(content, *rest)


def _scalar(dtype: Any, *value: Any) -> Any:
    if not value and np.dtype(dtype).itemsize > 16:
        raise pickle.UnpicklingError("it asks for a value without giving it")
    return import_module("numpy._core.multiarray").scalar(dtype, *value)


def may_hold_data(name: str) -> bool:
    """Whether a global that is not allowed looks like a class that only holds data: no function, no tool of Python.

    >>> [may_hold_data(n) for n in ("my.Config", "posix.system", "subprocess.Popen", "datetime.date", "my.build")]
    [True, False, False, False, False]
    """
    module, _, last = name.rpartition(".")
    root = module.partition(".")[0]
    of_python = root in sys.stdlib_module_names or root in ("", "__builtin__", "posix", "nt", "commands")
    return last.lstrip("_")[:1].isupper() and (not of_python or root in _DATA_OF_PYTHON)


def safe_globals(further: Sequence[str] = (), *, mappings: Sequence[str] = ()) -> list[Callable | tuple[Callable, str]]:
    """Pairs for `torch.serialization.safe_globals`: a class, and the allowed name that it stands for.

    `further` are names of more classes, and `mappings` those of more dictionaries.
    """
    pairs: list[Callable | tuple[Callable, str]] = [
        (type("Foreign", (PickledObject,), {"name": n}), n) for n in (*CLASSES, *further)
    ]
    pairs += [(type("Foreign", (PickledMapping,), {}), name) for name in (*MAPPINGS, *mappings)]
    pairs += [(kind, f"{kind.__module__}.{kind.__name__}") for kind in TYPES]
    pairs += [(PickledText, name) for name in TEXTS] + [(_bytes, "builtins.bytes")]
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        pairs += [(_scalar, f"{core}.scalar"), (_array, f"{core}._reconstruct")]
    pairs += [(np.dtype, "numpy.dtype"), (PickledArray, "numpy.ndarray")]
    return pairs + [(kind, f"numpy.dtypes.{kind.__name__}") for kind in {type(np.dtype(c)) for c in "?bhilqBHILQefdSU"}]
