"""What a file may have built, and a user's own set-up by name: what `tavq doctor` examines.

A recipe or a YAML may come from anywhere, so what it names must be data, not code: a `torch.nn.Module` class of an
allowed package or one of `BUILDERS`, at every depth of its parameters. What a user names on the command line is theirs.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

# what a file may name, each with the modules below it
PACKAGES = (
    "diffusers", "ldm", "taming", "tavq_plugin.adapters", "torch.nn", "torchvision.models", "transformers",
    "vector_quantize_pytorch",
)  # fmt: skip
# the only targets that are no torch.nn.Module class: networks without weights, and what taming and ldm nest in a host
BUILDERS = frozenset({
    "torchvision.models.alexnet", "torchvision.models.mobilenet_v2", "torchvision.models.resnet18",
    "torchvision.models.resnet50", "torchvision.models.squeezenet1_0", "torchvision.models.squeezenet1_1",
    "torchvision.models.vgg11", "torchvision.models.vgg13", "torchvision.models.vgg16", "torchvision.models.vgg19",
    "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "taming.modules.misc.coord.CoordStage",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler", "ldm.lr_scheduler.LambdaWarmUpCosineScheduler2",
    "ldm.lr_scheduler.LambdaLinearScheduler",
})  # fmt: skip
NAMING = ("target", "_target_", "class_path")  # keys by which taming and ldm, Hydra and Lightning name what is built
# settings by which code in a file or a model may run, each with the one value by which it does not
SAFE = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True}

_allow: ContextVar[tuple[str, ...]] = ContextVar("allow", default=())  # of the object that is being built


def load_setup(target: str, *, allow: Sequence[str] = ()) -> tuple[nn.Module, torch.optim.Optimizer | None, Any]:
    """Run "file.py:function", "module:function" or a YAML with `target` and `params`; -> host, optimizer, align.

    The function returns a host, (host, optimizer) or (host, optimizer, align). It is the user's own code, and runs. A
    YAML is built as `instantiate` does, which refuses (ValueError) what is not a class of an allowed package.
    """
    if target.endswith((".yaml", ".yml")):
        config = _config(Path(target))
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


def instantiate(target: str, params: Mapping[str, Any], *, allow: Sequence[str] = (), where: str = "target") -> Any:
    """Call the class package.module.Class with params, once `builder_of` has passed both.

    Inside, `torch.load` reads tensors alone, so that a checkpoint named in params runs nothing. Nested targets may name
    the packages in `allow` too. Raises as `builder_of` does; ValueError for a checkpoint that holds more than tensors.
    """
    allow = (*allow, *_allow.get())
    build = builder_of(target, params, allow=allow, where=where)
    token = _allow.set(allow)
    try:
        with _importable(target), _weights_only():
            return build(**params)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{where} {target!r} reads a checkpoint that holds more than tensors, by which code may run: build it "
            "without the checkpoint, and load the tensors that tavq convert-checkpoint finds in it"
        ) from error
    finally:
        _allow.reset(token)


def builder_of(
    target: str, params: Mapping[str, Any], *, allow: Sequence[str] = (), where: str = "target"
) -> Callable[..., Any]:
    """The class, or the one of `BUILDERS`, that target names; nothing is built.

    `where` is the target's place in its file; `allow` are packages beside `PACKAGES`. Raises ValueError, with the place
    and the mend, unless target and every target nested in params name a `torch.nn.Module` class that an allowed package
    defines, or one of `BUILDERS`, and where a key such as trust_remote_code asks for code to be run. Raises ImportError
    where an allowed package is not installed.
    """
    known, below = (*PACKAGES, *allow), "".join(where.rpartition(".")[:2]) + "params"
    if not isinstance(params, Mapping):
        raise ValueError(f"{below} is {params!r}: give names and values")
    named = [(where, target), *_named(params, below, set())]
    for place, name in named:  # all names are read before anything is imported
        _refuse_name(name, place, known)
    found, *_ = [_resolved(name, place, known) for place, name in named]
    return found


def _named(value: Any, where: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The targets nested in a value, by their place; ValueError for a key that asks for code to be run."""
    if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))  # YAML's anchors let a value hold itself
    nested = isinstance(value, Mapping)
    for key, part in value.items() if nested else enumerate(value):
        place = f"{where}.{key}" if nested else f"{where}[{key}]"
        setting = str(key).strip().lower().replace("-", "_")
        if nested and setting in SAFE and part is not SAFE[setting]:
            raise ValueError(
                f"{place} is {part!r}, by which code that comes with a file or a model may run: remove it, or give "
                f"{SAFE[setting]}"
            )
        if nested and key in NAMING:
            yield place, part
        yield from _named(part, place, seen)


def _refuse_name(target: Any, where: str, known: Sequence[str]) -> None:
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and not part.startswith("__") for part in parts):
        raise ValueError(f"{where} {target!r} names no class: give the class as package.module.Class")
    if not _within(target, known):
        raise ValueError(
            f"{where} {target!r} is outside the allowed packages ({', '.join(known)}): name a class of one of them, "
            "or, if you trust the file, --allow its package"
        )


def _within(name: str, known: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in known)


def _resolved(target: str, where: str, known: Sequence[str]) -> Callable[..., Any]:
    """What a target names, imported; ValueError where it is not what a file may name."""
    module, _, name = target.rpartition(".")
    try:
        with _importable(target):
            found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = error.name or ""
        if "." in missing and f"{module}.".startswith(f"{missing}."):
            raise ValueError(f"{where} {target!r}: {missing} is no module ({error}): correct the name") from error
        raise ImportError(f"{where} {target!r} cannot be imported ({error}): install what is missing") from error
    except AttributeError as error:
        raise ValueError(f"{where} {target!r}: {module} has no {name} ({error}): correct the name") from error
    if target not in BUILDERS and not (isinstance(found, type) and issubclass(found, nn.Module)):
        kind = "class, but not one of torch.nn.Module" if isinstance(found, type) else type(found).__name__
        raise ValueError(
            f"{where} {target!r} is a {kind}: a file may name only a torch.nn.Module class, or one of "
            f"{', '.join(sorted(BUILDERS))}. Give such a class; a function of your own runs by tavq doctor "
            "file.py:function"
        )
    if not _within(found.__module__, known):
        raise ValueError(
            f"{where} {target!r} is defined in {found.__module__}, outside the allowed packages ({', '.join(known)}): "
            f"if you trust that too, --allow {found.__module__.split('.')[0]}"
        )
    return found


def _importable(target: str) -> AbstractContextManager:
    """taming's Lightning modules import on today's Lightning only with help."""
    if target.split(".")[0] != "taming":
        return nullcontext()
    from tavq_plugin.adapters.taming import enable_legacy_imports

    return enable_legacy_imports()


@contextmanager
def _weights_only() -> Iterator[None]:
    """`torch.load` reads tensors alone, whatever its caller or the environment asks for."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _config(path: Path) -> Mapping[str, Any]:
    """The `model` of a YAML file, or all of it: a mapping with a target."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    config = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(config, Mapping) or "target" not in config:
        raise ValueError(f"{path} has no target: give one, the host's class as package.module.Class, and params")
    return config


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
