"""Places where a host calls something: a module, a method or a function, and which of its calls in a forward pass.

A path names one: "encoder.down" a module, "model.quantize_fn" a method, "package.module:function" a function in the
Python module where the host looks it up. "encoder.down#2" is the second call of one forward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

OnCall = Callable[[nn.Module, tuple, dict, Any], None]  # (module that holds it, arguments, by name, output)


class Handle:
    """Undoes something, once."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo: Callable[[], None] | None = undo

    def remove(self) -> None:
        """Undo it; does nothing the second time."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class Callee(NamedTuple):
    """A method or a function that a host calls."""

    owner: Any  # what holds it: a module, another object, or a Python module
    name: str
    module: nn.Module  # the nearest torch module that holds it; of a function, the host


def split_number(path: str) -> tuple[str, int | None]:
    """A path and the number of the call, from 1; None if the path names no call.

    >>> split_number("down#2"), split_number("down")
    (('down', 2), ('down', None))
    """
    bare, mark, number = path.partition("#")
    if mark and not (number.isdigit() and int(number) > 0):
        raise ValueError(f"{path!r} names no call: give a number from 1 after #, such as {bare}#2")
    return bare, int(number) if mark else None


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path. If there is none, ValueError names the nearest parent and its children."""
    path = split_number(path)[0]
    module = model
    for depth, name in enumerate(path.split(".")):
        module = getattr(module, "_orig_mod", module)  # look inside torch.compile's wrapper
        children = dict(module.named_children())
        if name not in children:
            parent = ".".join(path.split(".")[:depth]) or type(model).__name__
            raise ValueError(f"no module {path!r}: {parent} holds {', '.join(children) or 'no modules'}")
        module = children[name]
    return module


def find_callee(model: nn.Module, path: str) -> Callee | None:
    """The method or function at a path; None if a module is there, or nothing that can be called."""
    path = split_number(path)[0]
    source, colon, name = path.rpartition(":")
    if colon:
        owner: Any = sys.modules.get(source)
        if owner is None:  # a recipe may hold this path, and a recipe must not import what it likes
            raise ValueError(f"the Python module {source!r} of {path!r} is not imported: the host itself imports it")
        if not callable(getattr(owner, name, None)):
            raise ValueError(f"the Python module {source!r} has no function {name!r}: correct {path!r}")
        return Callee(owner, name, model)
    owner = holder = model
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
        owner = getattr(owner, "_orig_mod", owner)
        holder = owner if isinstance(owner, nn.Module) else holder
    found = getattr(owner, name, None)
    return None if found is None or isinstance(found, nn.Module) or not callable(found) else Callee(owner, name, holder)


def holding_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, or the one that holds the method there; of a function the host. ValueError if none is."""
    callee = find_callee(model, path)
    return find_module(model, path) if callee is None else callee.module


def hook_calls(model: nn.Module, path: str, on_call: OnCall) -> Any:
    """Call `on_call` after each call at the path, until the returned handle is removed.

    A module gets a forward hook. A method or function is replaced by one that calls it, and put back by the handle.
    """
    callee = find_callee(model, path)
    return (
        patch(callee, on_call) if callee else find_module(model, path).register_forward_hook(on_call, with_kwargs=True)
    )


def patch(callee: Callee, on_call: OnCall) -> Handle:
    """Replace a method or function by one that also calls `on_call`; the handle puts it back as it was."""
    owner, name = callee.owner, callee.name
    held = vars(owner) if isinstance(owner, ModuleType) or hasattr(owner, "__dict__") else {}
    before, absent = held.get(name), name not in held
    function = getattr(owner, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        output = function(*args, **kwargs)
        on_call(callee.module, args, kwargs, output)
        return output

    def undo() -> None:
        if absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    setattr(owner, name, recording)
    return Handle(undo)


class PatchWhileCalled:
    """Forward hooks that patch a method while the host's forward runs, so that a host at rest is as it was.

    The first tap's call patches it too, until the method's own, for training code that calls another method of the
    host. Copies of it are inert.
    """

    def __init__(self, model: nn.Module, path: str, on_call: OnCall, *, is_live: Callable[[], bool]) -> None:
        self.model, self.path, self.on_call, self.is_live = model, path, on_call, is_live
        self.number, self.count = split_number(path)[1] or 1, 0
        self._patch: Handle | None = None

    def begin(self, module: nn.Module, args: tuple) -> None:
        """Patch the method, unless it is already; a forward pre-hook of the host and of the first tap."""
        if self._patch is None and self.is_live() and not in_backward():
            callee = find_callee(self.model, self.path)
            if callee is not None:
                self.count, self._patch = 0, patch(callee, self._record)

    def end(self, *_: Any) -> None:
        """Put the method back; a forward hook of the host."""
        held, self._patch = self._patch, None
        if held is not None:
            held.remove()

    def _record(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.on_call(module, args, kwargs, output)
        self.count += 1
        if self.count >= self.number:
            self.end()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self._patch, self.is_live = state["path"], None, _never


def _never() -> bool:
    return False


def in_backward() -> bool:
    """Whether a backward pass is running, in which activation checkpointing runs modules a second time."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
