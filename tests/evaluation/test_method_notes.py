"""Which methods a comparison's notes call the same, and what they say about codes and bits."""

from dataclasses import replace

from helpers.toy_corpus import recipe

from tavq_plugin.evaluation.method_notes import method_notes, same_methods
from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.training.recipe import AdversarialRecipe, StartRecipe
from tavq_plugin.training.recipe_yaml import read_recipe

OPTIONS = {name: method_class(name).resolved_options({}) for name in METHODS}


def test_vqgan_is_vqvae_in_the_small_recipe_and_not_with_a_discriminator():
    small = read_recipe("small")
    assert same_methods(small, OPTIONS) == [["vqvae", "vqgan"]]
    with_discriminator = replace(small, adversarial=AdversarialRecipe(weight=0.1, start=350))
    assert same_methods(with_discriminator, OPTIONS) == []
    late = replace(small, adversarial=AdversarialRecipe(weight=0.1, start=small.steps))
    assert same_methods(late, OPTIONS) == [["vqvae", "vqgan"]]
    perceptual = replace(small, perceptual=replace(small.perceptual, kind="lpips"))
    assert same_methods(perceptual, OPTIONS) == []


def test_options_decide_whether_controls_are_the_same():
    sums = {"tavq": {"balance": None}, "tavq-weighted-sum": {"balance": None}, "tavq-shuffled": {"balance": None}}
    assert same_methods(recipe(), sums) == [["tavq", "tavq-weighted-sum"]]
    assert same_methods(recipe(), {**sums, "tavq": {"balance": 1.0}}) == []


def test_the_notes_say_what_is_the_same_and_who_is_not_restarted():
    notes = " ".join(method_notes(read_recipe("small"), OPTIONS, {}))
    assert (
        "vqvae and vqgan are the same to the bit under this recipe, which has no perceptual and no adversarial" in notes
    )
    assert "start on latents after 100 steps" in notes and "onto latents every 10 steps; not for cvq, vqct" in notes
    never = replace(read_recipe("small"), start=StartRecipe())
    (said,) = method_notes(never, {"tavq": OPTIONS["tavq"]}, {})
    assert said == "Codebook: unused codes are never restarted (start.revive_every=0)."


def test_the_bits_of_one_code_and_of_the_release_are_said():
    facts = {"vqct": {"adjectives": 40, "nouns": 90, "bits_per_place": 9.0, "released_bits": 16.1}}
    said = method_notes(recipe(), {"vqct": OPTIONS["vqct"]}, facts)[-1]
    assert "one code a place, 9.0 bits; the release stores two adjectives and a noun, which would be 16.1 bits" in said
