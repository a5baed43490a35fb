"""Forward hooks that keep what some modules of a host gave, and are always undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

COMPILED = (
    "Where torch.compile ran a module before its hooks were there, they never fire: attach before its first compiled "
    "call, or call torch._dynamo.reset()"
)


class Capture(NamedTuple):
    """One call of a tapped module."""

    z_in: Any  # its first argument
    output: Any
    version: int | None  # the output's in-place counter when the hook fired
    grad_enabled: bool


class Recorder:
    """What the tapped modules gave in the host's latest forward.

    A copy (deepcopy, pickle: an EMA twin, a checkpoint) starts empty and keeps nothing, so it never
    writes into the original's store.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.live = True
        self.seen: dict[str, Capture] = {}

    def keep(self, path: str, call: Capture) -> None:
        """Store a call; a path that fires again begins a new forward, so the former one is let go."""
        if self.live:
            if path in self.seen:
                self.seen.clear()
            self.seen[path] = call

    def take(self) -> dict[str, Capture]:
        """Hand over the latest forward and forget it; RuntimeError where there is none or it is not whole."""
        seen, self.seen = self.seen, {}
        if not seen:
            raise RuntimeError(
                "no forward of the host was recorded since the last alignment: call align(texts) once, "
                f"after the host's own forward of the generator pass. {COMPILED}"
            )
        silent = [path for path in self.paths if path not in seen]
        if silent:
            raise RuntimeError(
                f"these taps never fired in the host's forward: {', '.join(silent)}. A container that is not "
                "called itself (a ModuleList, taming's encoder.down.1) has no output: name a module inside it in "
                f"taps=. {COMPILED}"
            )
        for path, call in seen.items():
            if call.version is not None and call.output._version != call.version:
                raise RuntimeError(
                    f"the output of tap {path!r} was modified in place after the hook fired (an in-place "
                    "activation?): name the module that modifies it, or one before it, in taps="
                )
        return seen

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "live": False, "seen": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        twin = Recorder(self.paths)
        twin.live = False
        memo[id(self)] = twin
        return twin


class _Keep:
    """The hook itself: a module-level callable, so that a hooked host still pickles and copies."""

    def __init__(self, recorder: Recorder, path: str) -> None:
        self.recorder, self.path = recorder, path

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if _in_backward():
            return  # checkpointing runs the module again
        z_in = args[0] if args else next(iter(kwargs.values()), None)
        version = None
        if isinstance(output, Tensor) and not output.is_inference():
            version = output._version
        self.recorder.keep(self.path, Capture(z_in, output, version, torch.is_grad_enabled()))


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def require_gradient(seen: dict[str, Capture]) -> None:
    """RuntimeError where a tapped module ran without gradient: a loss on its capture would do nothing, silently."""
    blind = [path for path, call in seen.items() if not call.grad_enabled]
    if len(blind) == len(seen):
        raise RuntimeError(
            "the host's latest forward ran under no_grad (an evaluation pass?), or all of it inside a reentrant "
            "checkpoint: its capture is stale for a training loss; call align(texts) after the forward of the "
            "generator pass, and give torch.utils.checkpoint use_reentrant=False"
        )
    if blind:
        raise RuntimeError(
            f"{', '.join(blind)} ran under no_grad while the rest of the host did not (reentrant checkpointing?), so "
            "a loss on what it gave has no gradient: give torch.utils.checkpoint use_reentrant=False"
        )


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; ValueError names the nearest part that exists and what it holds."""
    module = model
    for depth, name in enumerate(path.split(".")):
        module = getattr(module, "_orig_mod", module)  # a submodule that torch.compile holds
        children = dict(module.named_children())
        if name not in children:
            there = ".".join(path.split(".")[:depth]) or type(model).__name__
            raise ValueError(f"no module {path!r}: {there} holds {', '.join(children) or 'no modules'}")
        module = children[name]
    return module


def install_hooks(model: nn.Module, recorder: Recorder) -> list[RemovableHandle]:
    """Hook every path of the recorder; the caller removes the handles. A wrong path leaves no hook behind."""
    modules = [(path, find_module(model, path)) for path in recorder.paths]
    return [module.register_forward_hook(_Keep(recorder, path), with_kwargs=True) for path, module in modules]


@contextmanager
def tapped(model: nn.Module, *, at: Sequence[str]) -> Iterator[Recorder]:
    """Hooks for the length of a block, removed also on error.

    >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> with tapped(model, at=["1"]) as recorder:
    ...     _ = model(torch.tensor([-1.0]))
    >>> recorder.take()["1"].output, len(model[1]._forward_hooks)
    (tensor([0.]), 0)
    """
    recorder = Recorder(at)
    handles = install_hooks(model, recorder)
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
