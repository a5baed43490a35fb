"""Build the wrapped host and the method of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.methods.base import Method
from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.training.build_host import build_host, refuse_resolution
from tavq_plugin.training.recipe import Recipe


def build(recipe: Recipe, corpus: Corpus, *, allow: Sequence[str] = ()) -> tuple[Tokenizer, Method]:
    """The wrapped host and the recipe's method, initialised from the recipe's seed; all methods get the same host.

    Raises ValueError for an unknown method or option, and for a host that does not take the recipe's images.
    """
    tokenizer = build_tokenizer(recipe, allow=allow)
    cls = method_class(recipe.method)
    try:
        inspect.signature(cls).bind(tokenizer, corpus, seed=recipe.seed, **recipe.options)
    except TypeError as error:
        raise ValueError(f"options of method {recipe.method}: {error}") from error
    with isolated_random_state(torch.device("cpu")):
        method = cls(tokenizer, corpus, seed=recipe.seed, **recipe.options)
    return tokenizer, method


def build_tokenizer(recipe: Recipe, *, allow: Sequence[str] = ()) -> Tokenizer:
    """The wrapped host alone, as `build` makes it; it sets torch's global seed to the recipe's.

    Raises ValueError for an unknown method, and for a host that does not take the recipe's images.
    """
    if recipe.method not in METHODS:
        raise ValueError(f"no method {recipe.method!r}: one of {', '.join(METHODS)}")
    torch.manual_seed(recipe.seed)
    host = build_host(recipe.host, recipe.resolution, allow=allow)
    refuse_resolution(host, recipe.resolution)
    max_grid = max(16, min(64, recipe.resolution // 2))
    detach = not method_class(recipe.method).levels
    return wrap(host, **{"detach_added_levels": detach, "max_grid": max_grid, **recipe.host.wrap})
