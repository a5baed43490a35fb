"""What a comparison's recipe does to its methods: which are the same under it, and which it does not restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tavq_plugin.methods import method_class
from tavq_plugin.methods.base import Method
from tavq_plugin.training.recipe import Recipe

# what a class may differ in without training differently: names, and flags and options that count in another way
_NOT_TRAINING = ("name", "adversarial", "perceptual", "auto_balance", "weighed_by", "strengths", "at_strength")


def method_notes(
    recipe: Recipe, options: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Sentences for the report.

    Args:
        recipe: What all methods share.
        options: The complete options of each method.
        facts: The methods' own numbers (`Method.facts`), where they have any.
    """
    notes = [
        f"{' and '.join(names)} are the same to the bit under this recipe, which has {_absent_terms(recipe)}."
        for names in same_methods(recipe, options)
    ]
    notes.append(_about_codes(recipe, options))
    for name, numbers in facts.items():
        notes += [_bits_sentence(name, numbers)] if "bits_per_place" in numbers else []
    return [note for note in notes if note]


def same_methods(recipe: Recipe, options: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Groups of methods that train alike under a recipe, from the recipe and the methods' classes.

    >>> plain = {"vqvae": {}, "vqgan": {}}
    >>> same_methods(Recipe(), plain)  # the discriminator of the default recipe starts after its last step
    [['vqvae', 'vqgan']]
    """
    groups: dict[str, list[str]] = {}
    for name, own in options.items():
        cls = method_class(name)
        flags = (cls.adversarial and has_discriminator(recipe), cls.perceptual and has_perceptual(recipe))
        groups.setdefault(repr((flags, sorted(own.items()), _behaviour(cls))), []).append(name)
    return [names for names in groups.values() if names[1:]]


def has_discriminator(recipe: Recipe) -> bool:
    """Whether a discriminator takes part in any step of the recipe."""
    return recipe.adversarial.weight > 0 and recipe.adversarial.start < recipe.steps


def has_perceptual(recipe: Recipe) -> bool:
    """Whether the recipe has a perceptual loss."""
    return recipe.perceptual.kind != "none" and recipe.perceptual.weight > 0


def _behaviour(cls: type[Method]) -> list[tuple[str, Any]]:
    """Every attribute of a class that may make its training differ, by name."""
    names = {
        name
        for part in cls.__mro__
        if issubclass(part, Method)
        for name in vars(part)
        if name == "__init__" or not (name.startswith("__") or name in _NOT_TRAINING)
    }
    found = ((name, getattr(cls, name, None)) for name in sorted(names))
    return [(name, getattr(value, "__func__", value)) for name, value in found if not name.startswith("_abc")]


def _absent_terms(recipe: Recipe) -> str:
    parts = [
        *([] if has_perceptual(recipe) else ["perceptual"]),
        *([] if has_discriminator(recipe) else ["adversarial"]),
    ]
    return f"no {' and no '.join(parts)} term" if parts else "the same terms for them"


def _about_codes(recipe: Recipe, options: Mapping[str, Mapping[str, Any]]) -> str:
    """How codes start and are restarted, and for which methods not."""
    start = recipe.start
    parts = [f"codes start on latents after {recipe.settled} steps without quantization"] if recipe.settled else []
    if start.revive_every:
        parts.append(f"hardly used codes are moved onto latents every {start.revive_every} steps")
    else:
        parts.append("unused codes are never restarted (start.revive_every=0)")
    without = [name for name, own in options.items() if not method_class(name).takes_restarts(own)]
    said = " and ".join(parts)
    which = f"; not for {', '.join(without)}, with ways of their own" if without else ""
    return f"Codebook: {said}{which}."


def _bits_sentence(name: str, numbers: Mapping[str, float]) -> str:
    three = numbers.get("codes_per_place") == 3
    said = (
        f"{name} has {numbers['adjectives']:.0f} adjectives and {numbers['nouns']:.0f} nouns, and stores "
        f"{'two adjectives and a noun' if three else 'one code'} a place, {numbers['bits_per_place']:.1f} bits"
    )
    if "released_bits" in numbers and not three:
        said += f"; the release stores two adjectives and a noun, which would be {numbers['released_bits']:.1f} bits"
    return f"{said}."
