"""Forward hooks that record the outputs of some modules of a host, and are always removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tavq_plugin.hosts.call_sites import (
    Handle,
    PatchWhileCalled,
    find_callee,
    find_module,
    hook_calls,
    in_backward,
    split_number,
)

COMPILED = (
    "If torch.compile ran a module before it was hooked, its hooks never fire: attach before the first compiled call, "
    "or call torch._dynamo.reset()"
)


class Capture(NamedTuple):
    """One call of a tapped module."""

    z_in: Any  # its first argument
    output: Any
    version: int | None  # the output's in-place counter when the hook fired
    grad_enabled: bool


class Recorder:
    """The calls of the tapped modules in the host's latest forward pass.

    Copies of a recorder (deepcopy, pickle: an EMA of the host, a checkpoint) are inert: they start empty and record
    nothing.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.live = True
        self.seen: dict[str, Capture] = {}
        self.counts: Counter[str] = Counter()  # calls of this forward pass, if a path names one of several

    def record(self, path: str, call: Capture) -> None:
        """Store a call. A path that is called again begins a new forward pass, so the earlier one is dropped.

        Where paths name one of several calls, a pass ends with the last path's; further calls are not stored.
        """
        if not self.live:
            return
        if any("#" in named for named in self.paths):
            if self.paths[-1] in self.seen and path != split_number(self.paths[-1])[0]:
                self.begin()
            self.counts[path] += 1
            if path not in self.paths:
                path = f"{path}#{self.counts[path]}"
        if path in self.seen:
            self.begin()
        if path in self.paths:
            self.seen[path] = call

    def begin(self) -> None:
        """Forget the calls so far: a new forward pass begins."""
        self.seen.clear()
        self.counts.clear()

    def take(self) -> dict[str, Capture]:
        """Return the latest forward pass and forget it.

        Raises RuntimeError if there is none, a tap never fired, or a captured output was changed in place since.
        """
        seen, self.seen = self.seen, {}
        self.counts.clear()
        if not seen:
            raise RuntimeError(
                "no forward of the host was recorded since the last alignment: call align(texts) once, "
                f"after the host's forward in the generator pass. {COMPILED}"
            )
        not_fired = [path for path in self.paths if path not in seen]
        if not_fired:
            raise RuntimeError(
                f"these taps never fired in the host's forward: {', '.join(not_fired)}. A container that is never "
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

    def is_live(self) -> bool:
        """Whether calls are recorded."""
        return self.live

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "live": False, "seen": {}, "counts": Counter()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        twin = Recorder(self.paths)
        twin.live = False
        memo[id(self)] = twin
        return twin


class _RecordingHook:
    """A forward hook that records each call; a module-level class, so that a hooked host can be pickled and copied."""

    def __init__(self, recorder: Recorder, path: str) -> None:
        self.recorder, self.path = recorder, path

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if in_backward():
            return  # activation checkpointing runs the module a second time
        z_in = args[0] if args else next(iter(kwargs.values()), None)
        version = None
        if isinstance(output, Tensor) and not output.is_inference():
            version = output._version
        self.recorder.record(self.path, Capture(z_in, output, version, torch.is_grad_enabled()))


def require_gradient(seen: dict[str, Capture]) -> None:
    """Raise RuntimeError if a tapped module ran without gradient, as a loss on its output would train nothing."""
    without_grad = [path for path, call in seen.items() if not call.grad_enabled]
    if len(without_grad) == len(seen):
        raise RuntimeError(
            "the host's latest forward ran under no_grad (an evaluation pass?), or as a whole inside a reentrant "
            "checkpoint, so a loss on it has no gradient: call align(texts) after the forward of the generator pass, "
            "and give torch.utils.checkpoint use_reentrant=False"
        )
    if without_grad:
        raise RuntimeError(
            f"{', '.join(without_grad)} ran under no_grad while the rest of the host did not (reentrant "
            "checkpointing?), so a loss on its output has no gradient: give torch.utils.checkpoint use_reentrant=False"
        )


def install_hooks(model: nn.Module, recorder: Recorder) -> list[Any]:
    """Hook every path of the recorder; the caller removes the handles. If a path is wrong, no hook is installed.

    A method or function is patched only while the host's forward runs (see `PatchWhileCalled`).
    """
    paths = bare_paths(recorder.paths)
    callees = {path: find_callee(model, path) for path in paths}
    modules = {path: find_module(model, path) for path in paths if callees[path] is None}
    handles: list[Any] = []
    for path in paths:
        hook = _RecordingHook(recorder, path)
        if path in modules:
            handles.append(modules[path].register_forward_hook(hook, with_kwargs=True))
        else:
            last = next(named for named in recorder.paths if split_number(named)[0] == path)
            patching = PatchWhileCalled(model, last, hook, is_live=recorder.is_live)
            for module in (model, next(iter(modules.values()))):
                handles.append(module.register_forward_pre_hook(patching.begin))
            handles.append(model.register_forward_hook(patching.end, always_call=True))
            handles.append(Handle(patching.end))
    if any("#" in path for path in recorder.paths):
        handles.append(model.register_forward_pre_hook(_BeginPass(recorder)))
    return handles


def bare_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths without the numbers of calls, each once."""
    return tuple(dict.fromkeys(split_number(path)[0] for path in paths))


class _BeginPass:
    """A forward pre-hook of the host: an earlier pass that an error ended is forgotten."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(self, module: nn.Module, args: tuple) -> None:
        if not in_backward():
            self.recorder.begin()


@contextmanager
def tapped(model: nn.Module, *, at: Sequence[str]) -> Iterator[Recorder]:
    """Record the modules at the given paths inside a `with` block; the hooks are removed at its end, also on error.

    >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> with tapped(model, at=["1"]) as recorder:
    ...     _ = model(torch.tensor([-1.0]))
    >>> recorder.take()["1"].output, len(model[1]._forward_hooks)
    (tensor([0.]), 0)
    """
    recorder = Recorder(at)
    handles: list[Any] = []
    try:
        for path in bare_paths(at):
            handles.append(hook_calls(model, path, _RecordingHook(recorder, path)))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
