"""Compile a host's encoder and decoder apart: every part between the places that are read, with the quantizer outside.

A part that torch.compile has traced does not run hooks that come later, and hides the gradient inside. So what is
compiled is the `forward` of the largest modules that hold neither a tap nor the quantizer: hooks on the module itself,
and on what it returns, act as without compiling. The quantizer, the added levels and the method stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import nn

from tavq_plugin.hosts.call_sites import Handle, find_callee, find_module, holding_module
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.summary import logger

# each part has its own limit of recompilations, where torch has this; else modules of one class share it
ISOLATED: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
)


def parts_to_compile(adapter: Adapter) -> list[str]:
    """Paths of the parts of the host that can be compiled, in the order of its modules.

    Modules without children are left out: compiling a single operation saves nothing.
    """
    host = adapter.model
    tapped: set[nn.Module] = set()  # their own hooks stay outside their forward
    held: set[nn.Module] = set()  # something within their own forward is read
    for path in adapter.taps:
        callee = find_callee(host, path)
        (tapped if callee is None else held).add(find_module(host, path) if callee is None else callee.module)
    quantizer = holding_module(host, adapter.quantizer)
    held.add(quantizer)

    def found(module: nn.Module, path: str) -> Iterator[str]:
        below = set(module.modules())
        if len(below) == 1 or (module is quantizer and module is not host):
            return
        is_whole = below.isdisjoint(held) and (below - {module}).isdisjoint(tapped)
        if is_whole and type(module).forward is not nn.Module.forward:
            yield path
            return
        for name, child in module.named_children():
            yield from found(child, f"{path}.{name}" if path else name)

    return list(found(host, ""))


def compile_parts(adapter: Adapter, backend: str, *, keeps_graph: bool = False) -> Handle:
    """Compile the parts of the host; the handle makes them as they were. Raises ValueError if there is none.

    `keeps_graph` says that gradients are taken more than once from a forward (retain_graph=True); until the handle is
    removed, torch then compiles backward passes that keep what they need.
    """
    paths = parts_to_compile(adapter)
    if not paths:
        raise ValueError(
            f"compile={backend!r} finds no module of {type(adapter.model).__name__} that holds neither a tap nor the "
            'quantizer: give compile: "no"'
        )
    modules = {find_module(adapter.model, path) for path in paths}  # a module may have two paths
    before = {module: vars(module).get("forward") for module in modules}
    for module in modules:
        module.forward = torch.compile(module.forward, backend=backend, **ISOLATED)
    switches = ExitStack()
    if keeps_graph:
        switches.enter_context(functorch_config.patch(donated_buffer=False))
    logger.info("compiled apart, by %s: %s", backend, ", ".join(paths))

    def undo() -> None:
        switches.close()
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward

    return Handle(undo)
