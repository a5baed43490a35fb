"""Long text → units → embeddings → batches: `split`, `TextEncoder`, `TextStore`, `ShardedStore`, `TextCache`.

A module is imported when one of its names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tavq_plugin.moved import old_names

_MODULE_OF = {
    "Splitter": "splitter",
    "TextUnits": "splitter",
    "Unit": "splitter",
    "split": "splitter",
    "frequent_units": "splitter",
    "TextEncoder": "encoder",
    "offline_encoder": "encoder",
    "TextStore": "store",
    "ShardedStore": "sharded_store",
    "TextCache": "cache",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        return old_names(__name__)(name)
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
