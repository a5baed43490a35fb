"""A context at whose end a host is what it was before, whatever ran inside.

`tavq_plugin.side_effects.eval_without_trace` is the light one beside it. This one is for a few runs of a host of which
nothing is known yet, in any mode: its quantizer may write its parameters or plain attributes (k-means at the first
call, counters), so all that can be reached is copied first, which takes as much memory as the host. The light one is
for long reading by a host that `wrap` has checked, in eval mode: it copies flags and buffers only, and what the reader
itself keeps on the module (its latest codes, its figures) stays.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tavq_plugin.distributed import is_sharded_tensor
from tavq_plugin.side_effects import isolated_random_state

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule

_CONTAINERS = (dict, list, set, deque)
_OPAQUE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, str, bytes, int, float, complex)


@contextmanager
def restored(host: nn.Module) -> Iterator[None]:
    """Restore a host at the end of the block, also on error, bit for bit; the block runs without gradient.

    That is its parameters, buffers, plain attributes, submodules, hooks and training flags; tensors, arrays,
    generators, lists, dicts, sets and the codebase's own objects among the attributes; and the random streams of torch,
    numpy and Python. The host itself runs, not a copy: many hosts cannot be copied, and a function that one holds may
    refer to the original. The parameters of a sharded host are not restored.

    Raises ValueError if the host has lazy parameters, which do not exist before its first call.
    """
    device = next(host.parameters()).device
    undo = _Undo(host)
    streams: tuple[Any, Any] = random.getstate(), np.random.get_state()
    try:
        with torch.no_grad(), isolated_random_state(device):
            yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        for module in list(host.modules()):
            if dist.is_available() and isinstance(module, FSDPModule):
                module.reshard()
        undo()


class _Undo:
    """How to bring back everything that was reached from a host."""

    def __init__(self, host: nn.Module) -> None:
        packages = {type(module).__module__.partition(".")[0] for module in host.modules()}
        self.own = tuple(packages - {"torch", "builtins"})  # where classes of the host's codebase are defined
        self.steps: list[Callable[[], None]] = []
        self.known: dict[int, Any] = {}  # by id; holds each object, so that no id is used twice
        self._keep_all(host)

    def __call__(self) -> None:
        with torch.no_grad():
            for step in self.steps:
                step()

    def _keep_all(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            value = waiting.pop()
            if id(value) not in self.known and not isinstance(value, _OPAQUE) and value is not None:
                self.known[id(value)] = value
                waiting += self._keep(value)

    def _keep(self, value: Any) -> list[Any]:
        """Remember one object; what it holds is returned, to be remembered too."""
        if isinstance(value, Tensor):
            self.steps.append(_undo_tensor(value))
        elif isinstance(value, _CONTAINERS):
            content = value.copy()
            self.steps.append(lambda: _refill(value, content))
            return list(content.values() if isinstance(content, dict) else content)
        elif isinstance(value, tuple):
            return list(value)
        elif isinstance(value, np.ndarray):
            before = value.copy()
            self.steps.append(lambda: np.copyto(value, before) if value.flags.writeable else None)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self.steps.append(lambda: _set_state(value, state))
        elif isinstance(value, random.Random):
            stream = value.getstate()
            self.steps.append(lambda: value.setstate(stream))
        elif isinstance(value, np.random.Generator):
            bits: Any = value.bit_generator
            bits_before = bits.state
            self.steps.append(lambda: setattr(bits, "state", bits_before))
        elif isinstance(value, nn.Module) or type(value).__module__.partition(".")[0] in self.own:
            attributes = getattr(value, "__dict__", {})
            content = dict(attributes)
            self.steps.append(lambda: _refill(attributes, content))
            return list(content.values())
        return []


def _undo_tensor(tensor: Tensor) -> Callable[[], None]:
    """A function that gives a tensor its memory, values and `requires_grad` back."""
    if is_lazy(tensor):
        raise ValueError(
            "this host has lazy parameters, which do not exist before its first call: run it once on a batch of its "
            "own images, then wrap it"
        )
    if is_sharded_tensor(tensor) or tensor.is_meta:
        return lambda: None
    memory, values, learns = tensor.data, tensor.detach().clone(), tensor.requires_grad

    def undo() -> None:
        if memory.shape != values.shape:
            memory.resize_(values.shape)
        if not torch.equal(memory, values):  # what did not change may lie in memory that nobody may write to
            memory.copy_(values)  # through `.data`, so that the tensor's in-place counter does not move
        if tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape:
            tensor.data = memory
        if tensor.is_leaf and tensor.requires_grad != learns:
            tensor.requires_grad_(learns)

    return undo


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _refill(container: Any, content: Any) -> None:
    """Put the same objects into a container again, if it holds others now."""
    if isinstance(container, dict):
        same = list(container) == list(content) and all(container[key] is content[key] for key in content)
    elif isinstance(container, set):
        same = container == content
    else:
        same = len(container) == len(content) and all(a is b for a, b in zip(container, content, strict=True))
    if same:
        return
    container.clear()
    if isinstance(container, dict | set):
        container.update(content)
    else:
        container.extend(content)
