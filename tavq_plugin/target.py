"""A user's own set-up, by name: what `tavq doctor` examines."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

# packages that a YAML's `target` may name: such a file may come from anywhere
ALLOWED = ("diffusers", "ldm", "taming", "tavq_plugin", "transformers", "vector_quantize_pytorch")


def load(target: str, *, allow: Sequence[str] = ()) -> tuple[nn.Module, torch.optim.Optimizer | None, Any]:
    """Run "file.py:function", "module:function" or a YAML with `target` and `params`; -> host, optimizer, align.

    The function returns a host, (host, optimizer) or (host, optimizer, align). It is the user's own code, and runs. A
    YAML's target is refused (ValueError) outside `ALLOWED` and the packages in `allow`.
    """
    if target.endswith((".yaml", ".yml")):
        import yaml

        config = yaml.safe_load(Path(target).read_text(encoding="utf-8-sig"))
        config = config.get("model", config)
        if "target" not in config:
            raise ValueError(f"{target} has no target: give one, the host's class as package.module.Class, and params")
        built = instantiate(config["target"], config.get("params") or {}, allow=allow)
    else:
        source, colon, name = target.rpartition(":")
        if not colon:
            raise ValueError(f"{target!r}: give file.py:function, package.module:function, or a YAML file")
        built = getattr(_module(source), name)()
    parts = (*built, None, None)[:3] if isinstance(built, tuple) else (built, None, None)
    if not isinstance(parts[0], nn.Module):
        raise ValueError(f"{target} gave a {type(parts[0]).__name__}, and a host is a torch.nn.Module")
    return parts


def instantiate(target: str, params: Mapping[str, Any], *, allow: Sequence[str] = ()) -> Any:
    """Call package.module.Class with params; ValueError outside `ALLOWED` and the packages in `allow`."""
    module, _, name = target.rpartition(".")
    known = (*ALLOWED, *allow)
    if module.split(".")[0] not in known:
        raise ValueError(
            f"target {target!r} is outside the allowed packages ({', '.join(known)}): if you trust the file, "
            "--allow its package"
        )
    with _importable(module):
        return getattr(importlib.import_module(module), name)(**params)


def _importable(module: str) -> AbstractContextManager:
    """taming's Lightning modules import on today's Lightning only with help."""
    if module.split(".")[0] != "taming":
        return nullcontext()
    from tavq_plugin.adapters.taming import enable_legacy_imports

    return enable_legacy_imports()


def _module(source: str) -> Any:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    if not Path(source).is_file():
        raise FileNotFoundError(f"no file {source}")
    spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
