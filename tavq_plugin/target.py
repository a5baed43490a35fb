"""A user's own set-up, by name: what `tavq doctor` examines."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn


def load(target: str) -> tuple[nn.Module, torch.optim.Optimizer | None, Any]:
    """Run "file.py:function", "module:function" or a YAML with `target` and `params`; -> host, optimizer, align.

    The function returns a host, (host, optimizer) or (host, optimizer, align). It is the user's own code, and runs.
    """
    if target.endswith((".yaml", ".yml")):
        import yaml

        config = yaml.safe_load(Path(target).read_text(encoding="utf-8"))
        config = config.get("model", config)
        if "target" not in config:
            raise ValueError(f"{target} has no target: give one, the host's class as package.module.Class, and params")
        module, _, name = config["target"].rpartition(".")
        built = getattr(importlib.import_module(module), name)(**(config.get("params") or {}))
    else:
        source, colon, name = target.rpartition(":")
        if not colon:
            raise ValueError(f"{target!r}: give file.py:function, package.module:function, or a YAML file")
        built = getattr(_module(source), name)()
    parts = (*built, None, None)[:3] if isinstance(built, tuple) else (built, None, None)
    if not isinstance(parts[0], nn.Module):
        raise ValueError(f"{target} gave a {type(parts[0]).__name__}, and a host is a torch.nn.Module")
    return parts


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
