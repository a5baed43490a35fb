"""The words that name an object, the mass inside it, and the sentence that says what a demo shows."""

import json

import pytest
import torch

from tavq_plugin.cli.demo_verdict import demo_verdict
from tavq_plugin.cli.demo_words import NamingWord, WordMass, mass_figures, naming_words, share_inside

FLOORS = {"mean colour": {"stored": {"grid_word_map": 20.0}}, "patch k-means": {"stored": {"grid_word_map": 30.0}}}


def content_of(word_map, *, mass=None):
    """The content of a demo with these values of word mAP, by run."""
    runs = {
        name: {
            "stored": {"grid_word_map": value, "word_map": value},
            "chance": {"grid_word_map": 15.0},
            "psnr": 20.0,
            "word_mass": None,
        }
        for name, value in word_map.items()
    }
    for name in ("tavq", "shuffled"):
        runs[name]["word_mass"] = mass
    return {"runs": runs, "floors": FLOORS, "protocol": {"n_eval": 200, "steps": 300}}


def verdict_of(word_map, *, noise=1.0, mass=None, pooled=None):
    """The verdict for per-image values that scatter by `noise` around each run's mean."""
    scatter = torch.randn(200, generator=torch.Generator().manual_seed(0))
    per_image = {}
    for place, (name, value) in enumerate(word_map.items()):
        own = noise * scatter.roll(place)
        scores = value + own - own.mean()
        other = scores if pooled is None else scores + pooled.get(name, 0.0)
        per_image[name] = {"word_map": scores.tolist(), "word_map_pooled": other.tolist()}
        per_image[name]["psnr"] = [20.0 + 0.1 * place] * 200
    return demo_verdict(content_of(word_map, mass=mass), per_image)


def test_a_gain_beyond_the_spread_over_both_controls_is_said_with_chance_and_floors():
    verdict = verdict_of({"lambda-0": 30.0, "tavq": 33.0, "shuffled": 30.5})
    sentence = verdict["sentence"]
    assert sentence.startswith("After 300 steps, the stored codes of tavq say more about the words of a text than")
    assert "word mAP of the stored codes is 33.00 % against 30.00 without alignment (+3.00, +2." in sentence
    assert "beside 15.0 by chance and the floors 20.0 for mean colour and 30.0 for patch k-means" in sentence
    assert "says more than tavq" not in sentence  # no floor does
    assert "200 held-out images" in sentence and sentence.endswith("(95 % intervals over images, one seed).")
    found = verdict["differences"]["word_map"]["shuffled"]
    assert found["mean"] == pytest.approx(2.5) and found["low"] < 2.5 < found["high"]
    assert json.loads(json.dumps(verdict)) == verdict and sentence.count(". ") == 0


@pytest.mark.parametrize(
    ("word_map", "noise", "words"),
    [
        ({"lambda-0": 25.0, "tavq": 29.0, "shuffled": 26.0}, 1.0, "30.0 for patch k-means (patch k-means says more"),
        ({"lambda-0": 30.0, "tavq": 30.1, "shuffled": 30.2}, 5.0, "300 steps is too short to tell whether alignment"),
        ({"lambda-0": 30.0, "tavq": 33.0, "shuffled": 33.0}, 1.0, "cannot tell whether the texts are the reason"),
        ({"lambda-0": 33.0, "tavq": 30.0, "shuffled": 33.0}, 1.0, "say less about the words of a text than"),
        ({"lambda-0": 30.0, "tavq": 31.0, "shuffled": 33.0}, 1.0, "more than without alignment and less than with"),
        ({"lambda-0": 33.0, "tavq": 33.0, "shuffled": 30.0}, 1.0, "say more than with shuffled texts; more cannot be"),
    ],
)
def test_what_cannot_be_told_is_not_claimed(word_map, noise, words):
    assert words in verdict_of(word_map, noise=noise)["sentence"]


def test_the_probe_on_pooled_codes_is_told_and_decides_nothing():
    word_map = {"lambda-0": 30.0, "tavq": 33.0, "shuffled": 30.0}
    sentence = verdict_of(word_map, pooled={"tavq": -3.5})["sentence"]
    assert sentence.startswith("After 300 steps, the stored codes of tavq say more about the words of a text than")
    assert "decides nothing here (docs/demo.md), the two differences are (-0.50, " in sentence
    other = {"lambda-0": 30.0, "tavq": 30.0, "shuffled": 30.0}
    sentence = verdict_of(other, pooled={"tavq": 3.0})["sentence"]
    assert sentence.startswith("This run of 300 steps is too short to tell")


def test_the_mass_of_naming_words_stands_beside_the_area_and_the_control():
    mass = {"inside": 40.0, "area": 10.0, "times": 4.0, "times_interval": [3.8, 4.2]}
    sentence = verdict_of({"lambda-0": 30.0, "tavq": 33.0, "shuffled": 30.0}, mass=mass)["sentence"]
    assert "sends 40 % of its mass into that object's box, 4.00 times (3.80 to 4.20) the box's 10 %" in sentence
    assert "shuffled texts give 4.00 times and chance 1" in sentence


def test_without_words_only_pixels_are_compared():
    per_image = {name: {"psnr": [20.0, 21.0 + place]} for place, name in enumerate(("lambda-0", "tavq", "shuffled"))}
    content = content_of(dict.fromkeys(("lambda-0", "tavq", "shuffled")))
    sentence = demo_verdict(content, per_image)["sentence"]
    assert sentence.startswith("The texts give no word mAP, so only pixels are compared on 200 held-out images: PSNR")


def box(phrase, *corners):
    return {"phrase": phrase, "box": list(corners or (0, 0, 1, 1))}


def test_naming_words_stand_in_one_phrase_alone_nouns_first():
    boxes = [box("large striped red triangle"), box("small red circle"), box("small blue ring")]
    units = ["Picture", "red", "triangle", "circle", "ring", "blue", "large", "small"]
    found = naming_words(units, boxes)
    assert [named.word for named in found] == ["triangle", "circle", "ring", "blue", "large"]
    assert [units[named.unit].lower() for named in found] == [named.word for named in found]
    assert found[3].box == boxes[2]
    assert naming_words(units, []) == [] == naming_words([], boxes)


def test_a_uniform_plan_gives_the_area_and_a_perfect_plan_all_mass():
    named = NamingWord("ring", 0, box("ring", 0, 0, 0.5, 0.5))
    assert share_inside(named, torch.full((1, 8, 8), 1 / 64)) == pytest.approx((0.25, 0.25))
    inside = torch.zeros(1, 8, 8)
    inside[0, :4, :4] = 1
    assert share_inside(named, inside) == pytest.approx((1.0, 0.25))


def test_figures_are_means_over_words_and_their_ratio():
    found = WordMass(torch.tensor([0.8, 0.0, 0.4]), torch.tensor([0.4, 0.0, 0.2]), torch.tensor([2.0, 0.0, 1.0]))
    figures = mass_figures(WordMass(*(part.double() for part in found)))
    assert figures["inside"] == pytest.approx(40) and figures["area"] == pytest.approx(20)
    assert figures["times"] == pytest.approx(2) and figures["times_interval"] == pytest.approx([2, 2])
    assert (figures["words"], figures["images"]) == (3, 2)
    assert mass_figures(None) is None is mass_figures(WordMass(*torch.zeros(3, 4, dtype=torch.float64)))
