"""Long text to units, to embeddings, to batches: `split`, `TextEncoder`, `TextStore`, `ShardedStore`, `TextCache`.

Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Splitter": "units",
    "TextUnits": "units",
    "Unit": "units",
    "split": "units",
    "frequent": "units",
    "TextEncoder": "embed",
    "offline_encoder": "embed",
    "TextStore": "store",
    "ShardedStore": "sharded",
    "TextCache": "cache",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
