"""Recipes as YAML: a file or the name of a shipped recipe, with dotted overrides; unknown settings are refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from tavq_plugin.io.atomic import read_json
from tavq_plugin.moved import current_settings, written_settings
from tavq_plugin.training.recipe import HostRecipe, Recipe

RECIPE_HEAD = "# Written by tavq train, which may overwrite it: keep your own recipes elsewhere.\n"


def shipped() -> dict[str, Path]:
    """The recipes that ship with the package: name -> path."""
    folder = Path(str(files("tavq_plugin.training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file or a shipped name (None: all defaults), changed by "dotted.name=value" overrides.

    A recipe.yaml that a run wrote means what it did then; see `written_settings`.

    Raises ValueError for an unknown setting, suggesting the nearest known one, and for a value that does not fit;
    FileNotFoundError if there is neither a file nor a shipped recipe of that name.
    """
    import yaml

    content = {} if source is None else file_settings(source)
    was_written = source is not None and _was_written_by_us(source)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: give name=value, such as optimizer.learning_rate=1e-4")
        content = _replaced(content, name.split("."), yaml.safe_load(value))
    return recipe_of(written_settings(content) if was_written else content)


def file_settings(source: str | Path) -> Mapping[str, Any]:
    """The settings written in a YAML file or a shipped recipe, without defaults; raises as `read_recipe`."""
    import yaml

    path = shipped().get(str(source), Path(source))
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {source}: give a YAML file, or one of {', '.join(shipped())}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}: a recipe needs names and values")
    return content


def _was_written_by_us(source: str | Path) -> bool:
    """Whether a run wrote this recipe: it has our header, or lies beside the settings of the run that it describes."""
    import yaml

    path = shipped().get(str(source), Path(source))
    text = path.read_text(encoding="utf-8-sig")
    if text.startswith(RECIPE_HEAD):
        return True
    saved = read_json(path.parent / "settings.json", strict=False)
    if not isinstance(saved, dict) or "corpus" not in saved:
        return False
    return yaml.safe_load(text) == {name: value for name, value in saved.items() if name != "corpus"}


def refuse_given_twice(overrides: Sequence[str], **options: Any) -> None:
    """Raise ValueError if an override and a command-line option set the same name; None means not given.

    >>> refuse_given_twice(["steps=3"], steps=None, resolution=32)
    >>> refuse_given_twice(["steps=3"], steps=2)
    Traceback (most recent call last):
    ValueError: steps is given twice, by --steps 2 and --set steps=3: give one of them
    """
    for override in overrides:
        name = override.partition("=")[0]
        if options.get(name) is not None:
            raise ValueError(
                f"{name} is given twice, by --{name} {options[name]} and --set {override}: give one of them"
            )


def recipe_of(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain dicts and lists, as `Recipe.to_dict` gives them.

    >>> recipe_of({"optimizer": {"learning_rate": "1e-4"}}).optimizer.learning_rate
    0.0001
    >>> recipe_of({"batchsize": 4})
    Traceback (most recent call last):
    ValueError: batchsize is not a setting of a recipe: did you mean batch_size?
    """
    current = current_settings(content)
    if current != content:
        warnings.warn(
            "this recipe uses old names (level_weight, beside), which the next release removes: write "
            "codebook_loss_weight (one value) or level_weights (one value per level), and detach_added_levels",
            DeprecationWarning,
            stacklevel=2,
        )
    return _settings(Recipe, current, "")


def _replaced(content: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The content with the value at a dotted path replaced; missing dicts on the way are added."""
    first, *rest = path
    if rest:
        below = content.get(first) or {}
        if first == "host" and isinstance(below, str):
            below = {"target": below}
        if not isinstance(below, Mapping):
            raise ValueError(f"{first} is {below!r} and has no {'.'.join(rest)}")
        value = _replaced(below, rest, value)
    return {**content, first: value}


def _settings(kind: type, content: Any, where: str) -> Any:
    """A settings dataclass from names and values; `where` is its dotted name, for error messages."""
    if kind is HostRecipe and isinstance(content, str):
        content = {"target": content}
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {content!r}: give names and values")
    types = get_type_hints(kind)
    given = {}
    for name, value in content.items():
        dotted = f"{where}.{name}" if where else str(name)
        if name not in types:
            near = get_close_matches(str(name), types, 1)
            mend = f"did you mean {f'{where}.' if where else ''}{near[0]}?" if near else f"one of {', '.join(types)}"
            raise ValueError(f"{dotted} is not a setting of a recipe: {mend}")
        given[name] = _as_type(types[name], value, dotted)
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if where else str(error)) from error


def _as_type(kind: Any, value: Any, where: str) -> Any:
    """A YAML value as the setting's type; YAML 1.1 reads 1e-4 as a string, and a bare no as False."""
    origin = get_origin(kind) or kind
    if isinstance(kind, type) and is_dataclass(kind):
        return _settings(kind, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_as_type(get_args(kind)[0], part, where) for part in value)
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is str and value in (False, None):
        return "no" if value is False else ""
    if origin is dict and value is None:
        return {}
    if isinstance(value, origin) and not (isinstance(value, bool) and origin is not bool):
        return value
    raise ValueError(f"{where} must be of type {getattr(kind, '__name__', kind)}, got {value!r}")
