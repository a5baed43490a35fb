"""Long text to units, to embeddings, to batches: `split`, `TextEncoder`, `TextStore`, `ShardedStore`, `TextCache`.

Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Splitter": "splitter",
    "TextUnits": "splitter",
    "Unit": "splitter",
    "split": "splitter",
    "frequent": "splitter",
    "TextEncoder": "encoder",
    "offline_encoder": "encoder",
    "TextStore": "store",
    "ShardedStore": "sharded_store",
    "TextCache": "cache",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
