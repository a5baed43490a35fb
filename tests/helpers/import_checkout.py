"""Import a codebase from a checkout, never copied: TAVQ_HOSTS names a folder of them, each in a folder `owner+name`.

Tests of an absent one skip, visibly. While a codebase is imported, stand-ins replace modules that no longer exist, or
that only its training needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn


@contextmanager
def importable(repository: str, *, bare: Sequence[str] = (), **stand_ins: ModuleType) -> Iterator[None]:
    """Put a checkout on the import path inside the block; then forget its modules, as names collide.

    Args:
        repository: `owner/name`.
        bare: Packages whose `__init__` is not run, as it imports more than the host needs, or whose names an installed
            package has too. Each is `package` or `folder/package`.
        stand_ins: Modules that stand in for others, by name.
    """
    root = os.environ.get("TAVQ_HOSTS")
    if not root:
        pytest.skip(f"TAVQ_HOSTS names no folder of checkouts; {repository} is looked for there")
    folder = Path(root) / repository.replace("/", "+")
    if not folder.is_dir():
        pytest.skip(f"no checkout of {repository} at {folder}")
    names = [path.rpartition("/")[2] for path in bare]
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in names}
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        for path, name in zip(bare, names, strict=True):
            sys.modules[name] = module(name, __path__=[str(folder / path.replace(".", "/"))])
        sys.modules.update(stand_ins)
        importlib.invalidate_caches()
        yield
    finally:
        sys.path.remove(str(folder))
        new = [(name, module) for name, module in sys.modules.items() if name not in before]
        theirs = [name for name, module in new if _inside(module, folder)] + list(stand_ins) + names
        for name in dict.fromkeys(theirs):
            sys.modules.pop(name, None)
        sys.modules.update({name: module for name, module in before.items() if name in stand_ins} | hidden)


def _inside(module: ModuleType, folder: Path) -> bool:
    spec = getattr(module, "__spec__", None)
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    return any(str(place).startswith(str(folder)) for place in places if place)


def module(name: str, **members: object) -> ModuleType:
    """A stand-in module."""
    stand_in = ModuleType(name)
    vars(stand_in).update(members)
    return stand_in


def nothing(*args: object, **kwargs: object) -> nn.Module:
    """Stand in for a loss or a scheduler that only training calls."""
    return nn.Identity()
