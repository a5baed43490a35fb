"""How much a pickle file makes of the bytes that it holds: read once without building anything, before it is read."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, ClassVar

_LEGACY_PICKLES = 5  # of a file that is no zip: its mark, version and machine, the content, the names of its memory
_TEXT_CODECS = {"latin1", "latin-1", "ascii", "utf-8", "utf8"}  # their bytes are at most as many as the file's
_TENSORS = re.compile(r"torch\.(\w+\.)*\w*(Tensor|Storage)")
_COPIES = ("_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor")
_KEY_PARTS = 100  # values in a key, which is hashed value by value each time
_POINTER = 8  # bytes of an entry of a container


class PickleBomb(ValueError):
    """A pickle asks for more than its file holds."""


class BoundedUnpickler(pickle._Unpickler):  # the one written in Python: a hostile index cannot make it reserve memory
    """Refuses keys that take long to hash, and memory of a size that the file names but does not hold."""

    stack: list[Any]  # of the class above; its type is left out there
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {  # type: ignore[misc]  # typeshed leaves its type out
        **pickle._Unpickler.dispatch  # type: ignore[attr-defined]
    }

    def load_setitem(self) -> None:
        """Put a value into a dictionary."""
        refuse_long_key(self.stack[-2])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        """Put values into a dictionary."""
        for key in self.stack[::2]:
            refuse_long_key(key)
        super().load_setitems()  # type: ignore[misc]

    def load_additems(self) -> None:
        """Put values into a set."""
        for key in self.stack:
            refuse_long_key(key)
        super().load_additems()  # type: ignore[misc]

    def load_frozenset(self) -> None:
        """Make a frozen set."""
        for key in self.stack:
            refuse_long_key(key)
        super().load_frozenset()  # type: ignore[misc]

    def load_bytearray8(self) -> None:
        """Refuse an instruction that reserves memory before it reads."""
        raise pickle.UnpicklingError("it holds a bytearray")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def refuse_long_key(key: Any) -> None:
    """Raise PickleBomb for a key of more values than any real one: tuples within tuples may double at each step."""
    waiting, seen = [key], 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if seen > _KEY_PARTS:
            raise PickleBomb(f"it has a key of more than {_KEY_PARTS} values, which would take too long to look up")
        if isinstance(part, tuple | frozenset):
            waiting += list(part)[: _KEY_PARTS + 1]


def refuse_bombs(path: Path, max_bytes: float) -> None:
    """Raise PickleBomb if a file of `torch.save` makes more than so many bytes from those that it holds.

    Nothing that it names is imported, called or built. Raises what `pickle` does if the file is not complete.
    """
    with ExitStack() as opened, path.open("rb") as file:
        parts: list[tuple[IO[bytes], int]] = [(file, _LEGACY_PICKLES)]
        if file.read(4) == b"PK\3\4":
            archive = opened.enter_context(zipfile.ZipFile(path))
            members = [member for member in archive.infolist() if member.filename.split("/")[-1] == "data.pkl"]
            parts = [(opened.enter_context(archive.open(member)), 1) for member in members]
        file.seek(0)
        for content, pickles in parts:
            spent = 0
            for _ in range(pickles):
                unpickler = _DryUnpickler(content, max_bytes, spent)
                unpickler.load()
                spent = unpickler.spent


class _Stub:
    """Stands for what a pickle makes by a name; `size` counts the bytes and entries that it was given."""

    def __init__(self, name: str, size: int = 0) -> None:
        self.name, self.size = name, size

    def __setitem__(self, key: Any, value: Any) -> None:
        self.size += _POINTER

    def append(self, value: Any) -> None:
        self.size += _POINTER

    def extend(self, values: Any) -> None:
        self.size += _POINTER * len(values)

    add = append
    update = extend


class _Named(_Stub):
    """A name in a pickle, which may be called."""


class _Mapping(dict):
    """A dictionary that may be given attributes."""


class _DryUnpickler(BoundedUnpickler):
    """Follows a pickle with stubs in place of all that it names; counts the bytes that calls would copy."""

    dispatch = {**BoundedUnpickler.dispatch}  # noqa: RUF012  # as in the class above

    def __init__(self, file: IO[bytes], max_bytes: float, spent: int) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")  # type: ignore[call-arg]
        self.max_bytes, self.spent = max_bytes, spent

    def find_class(self, module: str, name: str) -> Any:
        return _Named(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return _Stub("a storage")

    def load_reduce(self) -> None:
        """Call a name."""
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def load_newobj(self) -> None:
        """Make an object of a class."""
        args, made = self.stack.pop(), self.stack.pop()
        self.append(self.call(made, args))

    def load_build(self) -> None:
        """Give an object its state."""
        state, made = self.stack.pop(), self.stack[-1]
        size = sum(map(_size, state)) if isinstance(state, tuple) else _size(state)
        self.spend(size)
        if isinstance(made, _Stub):
            made.size += size

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build

    def spend(self, size: int) -> None:
        """Count bytes that are made."""
        self.spent += size
        if self.spent > self.max_bytes:
            raise PickleBomb(
                f"it makes more than {self.max_bytes:,.0f} bytes by copying what it holds; if you trust it, give "
                "--max-growth a higher limit"
            )

    def call(self, called: Any, args: Any) -> Any:
        """What a call gives, made of the arguments alone; a stub for what is not a plain value."""
        if not isinstance(called, _Named) or not isinstance(args, tuple):
            raise pickle.UnpicklingError(f"it calls a {type(called).__name__}")
        module, _, last = called.name.rpartition(".")
        size = sum(map(_size, args))
        self.spend(size)
        if called.name == "_codecs.encode":
            return _encoded(*args)
        if called.name in ("builtins.bytes", "builtins.bytearray", "__builtin__.bytearray"):
            if args and isinstance(args[0], int):
                raise PickleBomb(f"it asks for {args[0]:,} bytes without giving their values")
            return _Stub(called.name, size) if last == "bytearray" or not args else args[0]
        if called.name in ("builtins.str", "__builtin__.str", "torch.torch_version.TorchVersion"):
            return "" if not args else args[0]  # PickledText refuses all but texts
        if called.name in _CONTAINERS:
            return _container(_CONTAINERS[called.name], args)
        if module == "torch._tensor" and last == "_rebuild_from_type_v2" and len(args) == 4:
            return self.call(args[0], args[2])
        if last in _COPIES:
            raise PickleBomb(f"it holds tensors of another device, by {last}: save them from the CPU")
        if _TENSORS.fullmatch(called.name) and args:
            raise PickleBomb(f"it asks for a {last} without giving its values")
        return _Stub(called.name, size)


_CONTAINERS: Mapping[str, Callable[..., Any]] = {
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "builtins.dict": _Mapping,
    "collections.OrderedDict": _Mapping,
    "collections.Counter": _Mapping,
    "torch.Size": tuple,
}


def _container(kind: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A list, tuple, set or dictionary of the entries of another one."""
    if not args:
        return kind()
    entries = args[0]
    if not isinstance(entries, list | tuple | dict | set | str | bytes):
        raise PickleBomb(f"it asks for the entries of {getattr(entries, 'name', type(entries).__name__)}, one by one")
    if kind is set:
        for entry in entries:
            refuse_long_key(entry)
    if kind is _Mapping:
        for entry in entries:  # pairs, or keys
            refuse_long_key(entry[0] if isinstance(entry, list | tuple) and entry else entry)
        return _Mapping()
    return kind(entries)


def _encoded(text: Any = None, codec: Any = "utf-8", *_: Any) -> bytes:
    """The bytes of a text; other codecs than those of text may double what they are given."""
    if not isinstance(text, str) or not isinstance(codec, str) or codec.lower() not in _TEXT_CODECS:
        raise PickleBomb(f"it encodes by {str(codec)[:40]!r} what may grow at each step; only texts are encoded")
    return text.encode(codec)


def _size(value: Any) -> int:
    """Bytes of a value without those of the values in it."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple | dict | set):
        return _POINTER * len(value)
    return value.size if isinstance(value, _Stub) else 0
