"""Build what a recipe or a YAML file names, and nothing that could run code.

Such a file may come from anywhere. It may name only `torch.nn.Module` classes of allowed packages and `BUILDERS`, at
every depth of its parameters.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch import nn

# packages whose classes a file may name, with their submodules
PACKAGES = (
    "diffusers", "ldm", "taming", "tavq_plugin.adapters", "torch.nn", "torchvision.models", "transformers",
    "vector_quantize_pytorch",
)  # fmt: skip
# the only targets that are not torch.nn.Module classes: networks without weights, and what taming and ldm nest in hosts
BUILDERS = frozenset({
    "torchvision.models.alexnet", "torchvision.models.mobilenet_v2", "torchvision.models.resnet18",
    "torchvision.models.resnet50", "torchvision.models.squeezenet1_0", "torchvision.models.squeezenet1_1",
    "torchvision.models.vgg11", "torchvision.models.vgg13", "torchvision.models.vgg16", "torchvision.models.vgg19",
    "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "taming.modules.misc.coord.CoordStage",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler", "ldm.lr_scheduler.LambdaWarmUpCosineScheduler2",
    "ldm.lr_scheduler.LambdaLinearScheduler",
})  # fmt: skip
NAMING = ("target", "_target_", "class_path")  # the keys for a target in taming and ldm, Hydra, and Lightning
# settings that can run code from a file or a model, each with its only safe value
SAFE = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True}
# packages that import on today's libraries only inside a context manager of their adapter, as "module:function"
IMPORT_CONTEXTS = {"taming": "tavq_plugin.adapters.taming:enable_legacy_imports"}

_allow: ContextVar[tuple[str, ...]] = ContextVar("allow", default=())  # for targets nested in the object being built


def instantiate(target: str, params: Mapping[str, Any], *, allow: Sequence[str] = (), where: str = "target") -> Any:
    """Build target, package.module.Class, with params, after `builder_of` has checked both.

    During the build `torch.load` reads only tensors, so a checkpoint named in params runs no code. Targets that taming
    or ldm resolve themselves may name the packages in `allow` too.

    Args:
        target: What to build, as package.module.Class.
        params: Its keyword arguments; they may hold targets of their own.
        allow: Allowed packages besides `PACKAGES`.
        where: The target's place in its file, for error messages.

    Raises:
        ValueError, ImportError: As `builder_of`; ValueError also for a checkpoint that holds more than tensors.
    """
    allow = (*allow, *_allow.get())
    build = builder_of(target, params, allow=allow, where=where)
    token = _allow.set(allow)
    try:
        with _import_context(target), _weights_only():
            return build(**params)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{where} {target!r} reads a checkpoint that holds more than tensors, which could run code: build it "
            "without the checkpoint, and load the tensors that tavq convert-checkpoint finds in it"
        ) from error
    finally:
        _allow.reset(token)


def builder_of(
    target: str, params: Mapping[str, Any], *, allow: Sequence[str] = (), where: str = "target"
) -> Callable[..., Any]:
    """Check target and params, and import what target names; nothing is built. Arguments as `instantiate`.

    Raises:
        ValueError: Target, or a target nested in params, is neither a `torch.nn.Module` class defined in an allowed
            package nor one of `BUILDERS`; or a key such as trust_remote_code asks for code to be run.
        ImportError: An allowed package is not installed.
    """
    packages, params_place = (*PACKAGES, *allow), "".join(where.rpartition(".")[:2]) + "params"
    if not isinstance(params, Mapping):
        raise ValueError(f"{params_place} is {params!r}: give names and values")
    targets = [(where, target), *_nested_targets(params, params_place, set())]
    for place, name in targets:  # all names are checked before anything is imported
        _check_name(name, place, packages)
    found, *_ = [_imported(name, place, packages) for place, name in targets]
    return found


def _nested_targets(value: Any, where: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The targets nested in a value, each with its place; ValueError for a key that asks for code to be run."""
    if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))  # with YAML's anchors a value can contain itself
    parts = [(f"[{index}]", None, part) for index, part in enumerate(value)]
    if isinstance(value, Mapping):
        parts = [(f".{key}", key, part) for key, part in value.items()]
    for suffix, key, part in parts:
        place = f"{where}{suffix}"
        setting = str(key).strip().lower().replace("-", "_")
        if setting in SAFE and part is not SAFE[setting]:
            raise ValueError(
                f"{place} is {part!r}, which could run code that comes with a file or a model: remove it, or give "
                f"{SAFE[setting]}"
            )
        if key in NAMING:
            yield place, part
        yield from _nested_targets(part, place, seen)


def _check_name(target: Any, where: str, packages: Sequence[str]) -> None:
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and not part.startswith("__") for part in parts):
        raise ValueError(f"{where} {target!r} names no class: give the class as package.module.Class")
    if not _within(target, packages):
        raise ValueError(
            f"{where} {target!r} is outside the allowed packages ({', '.join(packages)}): name a class of one of them, "
            "or, if you trust the file, --allow its package"
        )


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _imported(target: str, where: str, packages: Sequence[str]) -> Callable[..., Any]:
    """The class or function that a target names, imported; ValueError if a file may not name it."""
    module, _, name = target.rpartition(".")
    try:
        with _import_context(target):
            found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = error.name or ""
        if "." in missing and f"{module}.".startswith(f"{missing}."):
            raise ValueError(f"{where} {target!r}: {missing} is no module ({error}): correct the name") from error
        raise ImportError(f"{where} {target!r} cannot be imported ({error}): install what is missing") from error
    except AttributeError as error:
        raise ValueError(f"{where} {target!r}: {module} has no {name} ({error}): correct the name") from error
    if target not in BUILDERS and not (isinstance(found, type) and issubclass(found, nn.Module)):
        kind = "class, but no subclass of torch.nn.Module" if isinstance(found, type) else type(found).__name__
        raise ValueError(
            f"{where} {target!r} is a {kind}: a file may name only a torch.nn.Module class, or one of "
            f"{', '.join(sorted(BUILDERS))}. Give such a class; for a function of yours, tavq doctor file.py:function"
        )
    if not _within(found.__module__, packages):
        raise ValueError(
            f"{where} {target!r} is defined in {found.__module__}, outside the allowed packages "
            f"({', '.join(packages)}): if you trust that package too, --allow {found.__module__.split('.')[0]}"
        )
    return found


def _import_context(target: str) -> AbstractContextManager:
    """The context manager inside which the target's package can be imported."""
    context = IMPORT_CONTEXTS.get(target.split(".")[0])
    if context is None:
        return nullcontext()
    module, _, name = context.partition(":")
    return getattr(importlib.import_module(module), name)()


@contextmanager
def _weights_only() -> Iterator[None]:
    """Inside the block `torch.load` reads only tensors, whatever its caller or the environment asks for."""
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
