"""Build the wrapped host and the method of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch.nn.utils import parametrize

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.summary import logger
from tavq_plugin.hosts.tokenizer import Tokenizer, wrap
from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.methods.base import Method
from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.training.build_host import build_host, refuse_resolution
from tavq_plugin.training.initial_weights import initial_weights, load_initial_weights
from tavq_plugin.training.recipe import Recipe


def build(recipe: Recipe, corpus: Corpus, *, allow: Sequence[str] = ()) -> tuple[Tokenizer, Method]:
    """The wrapped host and the recipe's method, initialised from the recipe's seed; all methods get the same host.

    With `init`, the host has that checkpoint's weights. To load other weights afterwards, leave it out:
    `replace(recipe, init="")`. Raises ValueError for an unknown method or option, for a host that does not take the
    recipe's images, and as `load_initial_weights`.
    """
    tokenizer = build_tokenizer(recipe, allow=allow)
    cls = method_class(recipe.method)
    try:
        inspect.signature(cls).bind(tokenizer, corpus, seed=recipe.seed, **recipe.options)
    except TypeError as error:
        raise ValueError(f"options of method {recipe.method}: {error}") from error
    with isolated_random_state(torch.device("cpu")):
        method = cls(tokenizer, corpus, seed=recipe.seed, **recipe.options)
    if recipe.init and is_codebook_computed(tokenizer):
        logger.warning("%s computes the codebook, so that in %s only starts its offsets", recipe.method, recipe.init)
    return tokenizer, method


def is_codebook_computed(tokenizer: Tokenizer) -> bool:
    """Whether a method's own network computes the host's codebook, so that codes are not free parameters."""
    return any(parametrize.is_parametrized(module) for module in tokenizer.host.modules())


def build_tokenizer(recipe: Recipe, *, allow: Sequence[str] = ()) -> Tokenizer:
    """The wrapped host alone, as `build` makes it; it sets torch's global seed to the recipe's. Raises as `build`."""
    if recipe.method not in METHODS:
        raise ValueError(f"no method {recipe.method!r}: one of {', '.join(METHODS)}")
    torch.manual_seed(recipe.seed)
    host = build_host(recipe.host, recipe.resolution, allow=allow)
    prepared = method_class(recipe.method).prepare_host(host, recipe.options)
    refuse_resolution(host, recipe.resolution)
    if recipe.init:
        logger.info("%s", load_initial_weights(host, recipe.init, allow=allow))
    max_grid = max(16, min(64, recipe.resolution // 2))
    detach = not method_class(recipe.method).levels
    return wrap(host, **{"detach_added_levels": detach, "max_grid": max_grid, **prepared, **recipe.host.wrap})


def describe_start(recipe: Recipe, *, allow: Sequence[str] = ()) -> str:
    """One line about the trained host that a recipe with `init` starts from; nothing is trained or written.

    Raises as `load_initial_weights`, so a checkpoint that does not fit is refused before any other work.
    """
    with isolated_random_state(torch.device("cpu")):
        host = build_host(recipe.host, recipe.resolution, allow=allow)
    settling = ", and start.settle_share is not used" if recipe.start.settle_share else ""
    return f"starts from a trained host{settling}: {initial_weights(host, recipe.init, allow=allow).summary}"
