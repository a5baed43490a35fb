"""Settings of a task, changed by "dotted.name=value" as the command line gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from tavq_plugin.tasks.task import TaskSettings


def changed_settings(settings: TaskSettings, overrides: Sequence[str]) -> TaskSettings:
    """The settings with some replaced; raises ValueError for an unknown name or a value that does not fit.

    >>> changed_settings(TaskSettings(), ["model.width=64", "fit.learning_rate=1e-4"]).model.width
    64
    >>> changed_settings(TaskSettings(), ["fit.step=5"])
    Traceback (most recent call last):
    ValueError: fit.step is not a setting of a task: did you mean fit.steps?
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: give name=value, such as model.width=64")
        settings = _replaced(settings, name, name.split("."), text)
    return settings


def _replaced(settings: Any, name: str, path: Sequence[str], text: str) -> Any:
    first, *rest = path
    known = {field.name for field in fields(settings)}
    if first not in known or bool(rest) != is_dataclass(getattr(settings, first, None)):
        everything = _dotted(asdict(TaskSettings()))
        near = get_close_matches(name, everything, 1)
        mend = f"did you mean {near[0]}?" if near else f"give one of {', '.join(everything)}"
        raise ValueError(f"{name} is not a setting of a task: {mend}")
    kind = get_type_hints(type(settings))[first]
    value = _replaced(getattr(settings, first), name, rest, text) if rest else _as_type(kind, name, text)
    return replace(settings, **{first: value})


def _as_type(kind: Any, name: str, text: str) -> Any:
    """The text as a value of the field's type; "none" stands for None where that is allowed."""
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    (kind, *_) = (each for each in kinds if each is not type(None))
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{name}={text}: give true or false")
        return text == "true"
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={text}: give a value of type {kind.__name__}") from error


def _dotted(settings: dict[str, Any], where: str = "") -> list[str]:
    parts = (
        _dotted(value, f"{where}{name}.") if isinstance(value, dict) else [f"{where}{name}"]
        for name, value in settings.items()
    )
    return [name for part in parts for name in part]
