"""Load a user's own host, named on the command line, for `tavq doctor` and `tavq evaluate`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tavq_plugin.hosts.instantiate import instantiate


class Setup(NamedTuple):
    """What a user's function or YAML file gives."""

    host: nn.Module
    optimizer: torch.optim.Optimizer | None
    align: Any  # what `attach` returned, or modules whose parameters the optimizer must hold; None if not given
    wrapping: dict[str, Any]  # arguments of `wrap`


def load_setup(target: str, *, allow: Sequence[str] = ()) -> tuple[nn.Module, torch.optim.Optimizer | None, Any]:
    """The host, optimizer and attachment that a target gives; see `load_target`."""
    return load_target(target, allow=allow)[:3]


def load_target(target: str, *, allow: Sequence[str] = ()) -> Setup:
    """What "file.py:function", "module:function" or a YAML file gives.

    The function is the user's own code; it runs, and returns host, (host, optimizer) or (host, optimizer, align), each
    also with a dict of `wrap`'s arguments as the last entry. A YAML file has `target` and `params`, and is built by
    `instantiate`, which refuses what could run code.

    Raises:
        ValueError: target names neither kind, or gives no torch.nn.Module; or `instantiate` refuses the YAML.
        TargetError: There is no such function, or the user's code raised an error.
        FileNotFoundError: There is no such file.
    """
    if target.endswith((".yaml", ".yml")):
        config = _read_config(Path(target))
        built = instantiate(config["target"], config.get("params") or {}, allow=allow)
    else:
        source, name = _parts_of(target)
        built = _call(target, source, name)
    parts = list(built) if isinstance(built, tuple) else [built]
    wrapping = parts.pop() if len(parts) > 1 and isinstance(parts[-1], dict) else {}
    host, optimizer, align = (*parts, None, None, None)[:3]
    if not isinstance(host, nn.Module):
        raise ValueError(f"{target} returned a {type(host).__name__}: return the host, a torch.nn.Module")
    return Setup(host, optimizer, align, wrapping)


def load_function(name: str, *, beside: str) -> Callable[..., Any]:
    """A function by its name in the file or module of another target, or by a target of its own.

    Raises ValueError, TargetError or FileNotFoundError as `load_target` does.
    """
    source, name = _parts_of(name if ":" in name else f"{beside.rpartition(':')[0]}:{name}")
    return _find_function(f"{source}:{name}", source, name)


def _parts_of(target: str) -> tuple[str, str]:
    source, colon, name = target.rpartition(":")
    if not colon or not source:
        raise ValueError(f"{target!r}: give file.py:function, package.module:function, or a YAML file")
    return source, name


def _call(target: str, source: str, name: str) -> Any:
    """What the user's function returns. An error of the user's code becomes a TargetError."""
    with _named_errors(target, source, name):
        return _find_function(target, source, name)()


def _find_function(target: str, source: str, name: str) -> Callable[..., Any]:
    """The user's function; the file or module runs."""
    if source.endswith(".py") and not Path(source).is_file():
        raise FileNotFoundError(f"no file {source}")
    with _named_errors(target, source, name):
        module = _import_module(source)
    function = getattr(module, name, None)
    if callable(function):
        return function
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise TargetError(
        f"{source} has no function {name!r}; it has {', '.join(functions) or 'none'}: give {source}:FUNCTION, a "
        "function that returns the host"
    )


class TargetError(ValueError):
    """A target's function is missing, or raised an error; the message says what to do."""


@contextmanager
def _named_errors(target: str, source: str, name: str) -> Iterator[None]:
    """Turn what the user's code raises into a TargetError that names the target; its folder can be imported from."""
    folder = Path(source).parent if source.endswith(".py") else Path()
    try:
        with _importable(folder.resolve()):
            yield
    except (TargetError, FileNotFoundError) as error:
        if isinstance(error, TargetError) or str(error) == f"no file {source}":
            raise
        raise _user_error(target, name, error) from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything; a script may call sys.exit
        raise _user_error(target, name, error) from error


def _user_error(target: str, name: str, error: BaseException) -> TargetError:
    return TargetError(
        f"{target} raised {type(error).__name__}: {error}. Fix: call {name}() in Python, where it must return the "
        "host; put a script's own work below if __name__ == '__main__'"
    )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in this folder can be imported inside the block, as by a script that lies there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))


def _read_config(path: Path) -> Mapping[str, Any]:
    """The mapping under `model` in a YAML file, or the whole file; it must have a target."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    config = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(config, Mapping) or "target" not in config:
        raise ValueError(f"{path} has no target: give one, the host's class as package.module.Class, and params")
    return config


def _import_module(source: str) -> Any:
    """A module from its dotted name, or from a .py file."""
    if not source.endswith(".py"):
        return importlib.import_module(source)
    spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    assert spec is not None and spec.loader is not None  # a .py file always has them
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
