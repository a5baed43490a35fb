"""Recipes: each shipped one builds and trains, bad settings are refused, and overrides change single settings."""

import pytest
import torch
import yaml
from helpers.toy_corpus import corpus

from tavq_plugin.training import Recipe, fit
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.recipe_yaml import read_recipe, recipe_of, shipped

TINY = (
    "steps=1", "batch_size=2", "perceptual.kind=none", "adversarial.width=4", "adversarial.layers=1",
    "adversarial.start=0", "tracker=none", "start.settle_share=0", "start.revive_every=1",
)  # fmt: skip
TINY_HOST = (
    "resolution=32", "host.params.ddconfig.resolution=32", "host.params.ddconfig.ch=32",
    "host.params.ddconfig.num_res_blocks=1", "host.params.ddconfig.z_channels=8",
    "host.params.ddconfig.ch_mult=[1,1,1,1,1]", "host.params.n_embed=16",
)  # fmt: skip


def test_the_documented_recipes_ship():
    assert {"celebahq", "cub", "coco", "modern", "small"} <= shipped().keys()


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_builds_and_trains(name, tmp_path):
    pytest.importorskip("taming")
    recipe = read_recipe(name)
    assert recipe.perceptual.kind == ("none" if name == "small" else "lpips")
    with torch.device("meta"):
        host = build_host(recipe.host, recipe.resolution)
    table = {"small": (512, 64), "modern": (16384, 8)}.get(name, (1024, 256))
    assert host.quantize.embedding.weight.shape == table and host.quantize.legacy is False
    if name != "small":
        assert sum(p.numel() for p in host.parameters()) > 60e6 and recipe.resolution == 256
    tiny = read_recipe(name, [*TINY, *(["resolution=16"] if name == "small" else TINY_HOST)])
    fitted = fit("vqgan", tiny, corpus(side=tiny.resolution), tmp_path / "run")
    assert len(fitted.history) == 1 and ("discriminator" in fitted.history[0]) == (name != "small")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"batchsize": 4}, "batchsize is not a setting of a recipe: did you mean batch_size?"),
        ({"optimizer": {"learning_rat": 1}}, "did you mean optimizer.learning_rate?"),
        ({"optimizer": 3}, "optimizer is 3: give names and values"),
        ({"steps": "many"}, "steps must be of type int, got 'many'"),
        ({"steps": 0}, "steps must be above 0, got 0"),
        ({"steps": True}, "steps must be of type int, got True"),
        ({"adversarial": {"start": -1}}, "adversarial.start must be 0 or more, got -1"),
        ({"precision": "fp16"}, "precision must be one of no, bf16, got 'fp16'"),
        ({"batch_size": 3, "accumulation": 2}, "batch_size 3 does not divide by accumulation=2"),
        ({"start": {"settle_share": 1.0}}, "below 1"),
        ({"start": {"revive_every": -1}}, "start.revive_every must be 0 or more, got -1"),
        ({"start": {"revive_share": -0.1}}, "start.revive_share must be 0 or more, got -0.1"),
        ({"optimizer": {"method_rate": 0.0}}, "optimizer.method_rate must be above 0, got 0.0"),
        ({"host": "smal"}, "host.target must be small, or a class such as package.module.Class, got 'smal'"),
        ({"host": {"target": ""}}, "host.target must be small"),
        ({"ema": 1.0}, "ema must be 0 or more and below 1"),
        ({"perceptual": {"sha256": "ab"}}, "8 digits or more"),
        ({"optimizer": {"betas": [0.9]}}, "betas must be two numbers"),
    ],
)
def test_a_bad_setting_is_refused(content, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        recipe_of(content)


def test_overrides_change_nested_settings_and_keep_the_rest(tmp_path):
    (tmp_path / "mine.yaml").write_text("host: small\nsteps: 7\noptimizer: {warmup: 3}\nprecision: no\n")
    recipe = read_recipe(
        tmp_path / "mine.yaml", ["optimizer.learning_rate=1e-4", "host.params.resolution=32", "seed=2"]
    )
    assert (recipe.steps, recipe.optimizer.warmup, recipe.seed) == (7, 3, 2)
    assert recipe.optimizer.learning_rate == 1e-4 and recipe.precision == "no"
    assert recipe.host.target == "small" and recipe.host.params == {"resolution": 32}
    with pytest.raises(ValueError, match="give name=value"):
        read_recipe(None, ["seed"])
    with pytest.raises(ValueError, match="has no warmup"):
        read_recipe(None, ["optimizer=3", "optimizer.warmup=1"])


def test_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "mine.yaml").write_text("steps: 7\n", encoding="utf-8-sig")
    assert read_recipe(tmp_path / "mine.yaml").steps == 7


def test_a_file_that_is_not_a_recipe_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe nowhere: give a YAML file, or one of celebahq"):
        read_recipe("nowhere")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_recipe(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="a recipe needs names and values"):
        read_recipe(tmp_path / "list.yaml")


@pytest.mark.parametrize("name", [None, *sorted(shipped())])
def test_a_written_recipe_reads_back_equal(name):
    recipe = read_recipe(name)
    assert recipe_of(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    assert (recipe == Recipe()) == (name is None)
