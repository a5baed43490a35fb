"""Save nested state (dicts and lists of tensors and plain values) as one safetensors file, without pickle."""

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
    """Write a tree of dicts, lists, tensors, numbers, strings and None; TypeError if it holds anything else."""
    shape, tensors = _split(tree)
    save_tensors(tensors, path, metadata={"tree": json.dumps(shape)})


def refuse_unsavable(tree: Any) -> None:
    """Raise the TypeError or ValueError that `save_tree` would raise; nothing is copied or written."""
    refuse_unstorable(_split(tree)[1])


def load_tree(path: Path) -> Any:
    """Read what `save_tree` wrote; tensors on the CPU, tuples as lists."""
    with safe_open(path, framework="pt") as file:
        shape = json.loads(file.metadata()["tree"])
        return _with_tensors(shape, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _split(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """The tree as JSON can hold it, with a name in place of each tensor; and the tensors by name."""
    tensors: dict[str, Tensor] = {}

    def named(node: Any, where: str) -> Any:
        if isinstance(node, Tensor):
            name = where or "value"
            while name in tensors:  # keys may contain slashes
                name += "+"
            tensors[name] = node
            return {_TENSOR: name}
        if isinstance(node, Mapping):
            items = [[key, named(value, f"{where}/{key}")] for key, value in node.items()]
            return dict(items) if all(isinstance(key, str) for key in node) else {_ITEMS: items}
        if isinstance(node, list | tuple):
            return [named(value, f"{where}/{i}") for i, value in enumerate(node)]
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(
            f"the state at {where} is a {type(node).__name__}, which cannot be saved without pickle: give tensors, "
            "numbers, strings, lists and dicts (a generator's get_state())"
        )

    return named(tree, ""), tensors


def _with_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with its tensors in place of their names."""
    if isinstance(node, list):
        return [_with_tensors(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    if _ITEMS in node:
        return {key: _with_tensors(value, tensors) for key, value in node[_ITEMS]}
    return {key: _with_tensors(value, tensors) for key, value in node.items()}
