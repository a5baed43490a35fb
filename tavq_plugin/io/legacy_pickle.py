"""Read plain pickle files, and give what JSON can hold of a checkpoint."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tavq_plugin.io.pickle_bounds import BoundedUnpickler
from tavq_plugin.io.redacted import MASK, names_a_secret, redacted
from tavq_plugin.io.unpickled_objects import PickledObject
from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that moved to other files

LONGEST_VALUE = 100_000  # characters or bytes of one value in the JSON; a longer one is left out by name
MOST_VALUES = 200_000  # in the JSON; 10 characters of a text count as one more


class _PlainUnpickler(BoundedUnpickler):
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
        except (
            EOFError,
            ValueError,
            IndexError,
            KeyError,
            AttributeError,
            TypeError,
            OverflowError,
            MemoryError,
        ) as error:
            raise ValueError(
                f"{path} is not a complete pickle ({type(error).__name__}: {error}); fetch it again"
            ) from error


class JsonContent(NamedTuple):
    """What JSON can hold of a checkpoint."""

    values: Any
    tensors_left_out: list[str]  # "name: shape" of each tensor and array with more than one value
    values_left_out: list[str]  # "name: what and why" of other values that are left out
    masked: list[str]  # names of values in which a secret or a home folder was masked


def json_content(value: Any, *, without: Sequence[Any] = (), most_values: int = MOST_VALUES) -> JsonContent:
    """The values of a checkpoint that JSON can hold; the objects in `without` are skipped.

    Values whose names or content look like keys are masked, and home folders become ~. Raises ValueError if there are
    more than `most_values`, or they are nested too deeply.

    >>> json_content({"a": (1, float("nan"), torch.tensor(2.0)), "b": torch.zeros(3), "api_key": "x"})[:2]
    ({'a': [1, 'nan', 2.0], 'api_key': '[masked]'}, ['b: 3'])
    """
    converter = _JsonConverter({id(part) for part in without}, most_values)
    try:
        values = converter.convert(value, "")
    except RecursionError as error:
        raise ValueError("its values are nested too deeply to be written as JSON: save its weights alone") from error
    return JsonContent(
        {} if values is _SKIPPED else values, converter.left_out, converter.values_left_out, converter.masked
    )


_SKIPPED = object()  # in place of weights, of tensors that are left out, and of references to an enclosing object


class _JsonConverter:
    """Converts nested values; collects the names of the tensors and values that it leaves out or masks."""

    def __init__(self, skipped: set[int], most_values: int) -> None:
        self.skipped, self.most_values = skipped, most_values
        self.left_out: list[str] = []
        self.values_left_out: list[str] = []
        self.masked: list[str] = []
        self.open: set[int] = set()  # objects that enclose the current one; a reference back to them is skipped
        self.count = 0

    def convert(self, value: Any, at: str, *, secret: bool = False) -> Any:
        if id(value) in self.skipped or id(value) in self.open:
            return _SKIPPED
        self._count(1)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, int) and value.bit_length() > 256:
            return self._leave_out(at, f"a number of {value.bit_length():,} bits")
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._text(str(value), at, secret=secret)
        if isinstance(value, bytes | bytearray):
            if len(value) > LONGEST_VALUE // 4:  # each byte may take four characters
                return self._leave_out(at, f"{len(value):,} bytes")
            return self._text(str(bytes(value)), at, secret=secret)
        if isinstance(value, Tensor | np.ndarray):
            return self._of_tensor(value, at)
        if isinstance(value, type):
            return getattr(value, "name", value.__name__)
        self.open.add(id(value))
        try:
            return self._container(value, at, secret=secret)
        finally:
            self.open.remove(id(value))

    def _count(self, number: int) -> None:
        self.count += number
        if self.count > self.most_values:
            raise ValueError(
                f"its configuration has more than {self.most_values:,} values, or text of that length: give "
                "--max-values a higher limit if you trust the file, or save its weights alone"
            )

    def _leave_out(self, at: str, what: str) -> Any:
        self.values_left_out.append(f"{at}: {what}")
        return _SKIPPED

    def _text(self, text: str, at: str, *, secret: bool) -> Any:
        if len(text) > LONGEST_VALUE:
            return self._leave_out(at, f"a text of {len(text):,} characters")
        self._count(len(text) // 10)
        shown = MASK if secret and text else redacted(text)
        if shown != text:
            self.masked.append(at)
        return shown

    def _of_tensor(self, value: Tensor | np.ndarray, at: str) -> Any:
        if (value.numel() if isinstance(value, Tensor) else value.size) == 1:
            try:
                return self.convert(value.item(), at)
            except (RuntimeError, NotImplementedError):  # on the meta device, or of a type without such a method
                pass
        self.left_out.append(f"{at}: {' '.join(map(str, value.shape))}")
        return _SKIPPED

    def _container(self, value: Any, at: str, *, secret: bool) -> Any:
        if isinstance(value, PickledObject):
            for inner in ("_content", "_val"):  # omegaconf's containers and leaves
                if inner in value.state:
                    return self.convert(value.state[inner], at, secret=secret)
            if value.name.startswith("pathlib."):
                parts = [str(self.convert(part, at)) for part in value.args]
                return self._text("/".join(parts).replace("//", "/"), at, secret=secret)
            return (
                self.convert(value.state, at, secret=secret)
                if value.state or not value.args
                else self.convert(list(value.args), at, secret=secret)
            )
        if isinstance(value, Mapping):
            made = {}
            for key, part in (*value.items(), *getattr(value, "__dict__", {}).items()):
                name = str(self.convert(key, at))
                while name in made:  # 1 and "1"
                    name += "+"
                made[name] = self.convert(part, f"{at}.{name}" if at else name, secret=secret or names_a_secret(name))
            return {key: part for key, part in made.items() if part is not _SKIPPED}
        if isinstance(value, list | tuple | set | frozenset | torch.Size):
            parts = [self.convert(part, f"{at}.{i}" if at else str(i), secret=secret) for i, part in enumerate(value)]
            return [None if part is _SKIPPED else part for part in parts]
        if isinstance(value, torch.TypedStorage | torch.UntypedStorage):
            return self._leave_out(at, f"memory of {value.nbytes():,} bytes")
        return self._text(str(value), at, secret=secret)
