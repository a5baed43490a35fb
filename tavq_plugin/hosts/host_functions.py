"""Functions that a user gives where a host's attributes are not enough: to run it, to decode, to read its codebook."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tavq_plugin.hosts.find_table import TableForm, find_form
from tavq_plugin.hosts.trial_run import HostReading, describe


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments; true if its signature is unknown.

    >>> takes(lambda z, output: 0, 2), takes(lambda z, output, module: 0, 2)
    (True, False)
    """
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some functions in C have no signature
        return True
    return True


class HostFunction:
    """A function of one tensor and, if it takes two arguments, the host; or a method of the host, by its name.

    A method by its name, and a function that takes the host, are right for copies of the host too.

    Args:
        model: The host.
        function: What the user gave.
        argument: The name of wrap's argument, for errors.

    Raises:
        ValueError: The host has no such method, or the function takes neither one nor two arguments.
    """

    def __init__(self, model: nn.Module, function: str | Callable[..., Any], argument: str) -> None:
        self.model, self.function, self.argument = model, function, argument
        if isinstance(function, str):
            self._method()
        elif not callable(function) or not (takes(function, 1) or takes(function, 2)):
            raise ValueError(
                f"{argument}= got {describe(function)}: give the name of a method of the host, or a function of one "
                f"tensor, or of it and the host, such as {argument}=lambda x, host: ..."
            )

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        if isinstance(self.function, str):
            return self._method()(x, *args, **kwargs)
        return self.function(x, *args, **kwargs) if takes(self.function, 1) else self.function(x, self.model)

    def _method(self) -> Callable[..., Any]:
        found: Any = self.model
        for name in str(self.function).split("."):
            found = getattr(found, name, None)
        if not callable(found):
            raise ValueError(
                f"{self.argument}={self.function!r}: {type(self.model).__name__} has no such method; it has "
                f"{', '.join(own_methods(self.model)) or 'none of its own'}"
            )
        return found


def own_methods(model: nn.Module) -> list[str]:
    """Names of the public methods that a host's classes define, other than torch's own."""
    classes = [cls for cls in type(model).__mro__ if not cls.__module__.startswith(("torch.", "builtins"))]
    names = (name for cls in classes for name, value in vars(cls).items() if callable(value))
    return sorted({name for name in names if not name.startswith("_")})


class HostTable:
    """The codebook at a path of the host, or that a function of the host gives; () -> k c.

    A path leads to a tensor, or to a module with a `weight`, such as an embedding.

    Raises ValueError if that is no matrix.
    """

    def __init__(self, model: nn.Module, source: str | Callable[[nn.Module], Tensor]) -> None:
        self.model, self.source = model, source
        self.form, self.module = TableForm(), model
        self()

    def __call__(self) -> Tensor:
        """The live codebook, k c."""
        return self.form.table(self._tensor(), self.module)

    def find_form(self, module: nn.Module, reading: HostReading) -> bool:
        """Look for the form of a named tensor that one run of the host looked up; whether it is another than now."""
        if not isinstance(self.source, str):
            return False
        found = find_form(self._tensor(), module, reading)
        if found in (None, self.form):
            return False
        self.form, self.module = found, module
        return True

    def __str__(self) -> str:
        path = self.source if isinstance(self.source, str) else "by codebook="
        return ", ".join(part for part in (path, str(self.form)) if part)

    def _tensor(self) -> Tensor:
        found = self._at_path(self.source) if isinstance(self.source, str) else self.source(self.model)
        if isinstance(found, nn.Module):
            found = getattr(found, "weight", found)
        if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point():
            shown = repr(self.source) if isinstance(self.source, str) else "the function"
            raise ValueError(
                f"codebook={shown} gives {describe(found)}, and a floating-point matrix k c was needed: give the path "
                'of a table, a function of the host such as codebook=lambda host: host.vq.table.T, "shared" or "own"'
            )
        return found

    def _at_path(self, path: str) -> Any:
        found: Any = self.model
        for name in path.split("."):
            if not hasattr(found, name):
                tables = [name for name, tensor in tensors_of(self.model) if tensor.ndim == 2][:12]
                raise ValueError(
                    f"codebook={path!r}: {type(self.model).__name__} holds no such tensor; its matrices are "
                    f"{', '.join(tables) or 'none'}"
                )
            found = getattr(found, name)
        return found


def tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, then buffers of a module, by path."""
    return [*module.named_parameters(), *module.named_buffers()]
