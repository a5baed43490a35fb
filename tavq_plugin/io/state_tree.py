"""Nested state (dicts and lists of tensors and plain values) as one safetensors file: no pickle, nothing runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from tavq_plugin.io.atomic import save_tensors
from tavq_plugin.io.storable import refuse_unstorable

_TENSOR, _ITEMS = "@tensor", "@items"


def save_tree(path: Path, tree: Any) -> None:
    """Write a tree of dicts, lists, tensors, numbers, strings and None; TypeError names the place of anything else."""
    tensors: dict[str, Tensor] = {}
    shape = _packed(tree, "", tensors)
    save_tensors(tensors, path, metadata={"tree": json.dumps(shape)})


def refuse_unsavable(tree: Any) -> None:
    """TypeError or ValueError, as `save_tree` would raise, naming the place; nothing is copied or written."""
    tensors: dict[str, Tensor] = {}
    _packed(tree, "", tensors)
    refuse_unstorable(tensors)


def load_tree(path: Path) -> Any:
    """Read what `save_tree` wrote; tensors on the CPU, tuples as lists."""
    with safe_open(path, framework="pt") as file:
        shape = json.loads(file.metadata()["tree"])
        return _unpacked(shape, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _packed(node: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = where or "value"
        while name in tensors:  # keys may hold a slash themselves
            name += "+"
        tensors[name] = node
        return {_TENSOR: name}
    if isinstance(node, Mapping):
        packed = [[key, _packed(value, f"{where}/{key}", tensors)] for key, value in node.items()]
        return dict(packed) if all(isinstance(key, str) for key in node) else {_ITEMS: packed}
    if isinstance(node, list | tuple):
        return [_packed(value, f"{where}/{i}", tensors) for i, value in enumerate(node)]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(
        f"the state at {where} is a {type(node).__name__}, which cannot be saved without pickle: give tensors, "
        "numbers, strings, lists and dicts (a generator's get_state())"
    )


def _unpacked(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpacked(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    if _ITEMS in node:
        return {key: _unpacked(value, tensors) for key, value in node[_ITEMS]}
    return {key: _unpacked(value, tensors) for key, value in node.items()}
