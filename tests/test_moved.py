"""Old paths and names: each finds what it was, and says where that is now."""

import importlib
import subprocess
import sys
import warnings

import pytest
import torch

import tavq_plugin as tavq
from tavq_plugin.moved import MODULES, NAMES, current_settings, new_place, written_settings
from tavq_plugin.training.recipe_yaml import read_recipe


@pytest.mark.parametrize("old", sorted(MODULES))
def test_an_old_module_is_found(old):
    new = importlib.import_module(f"tavq_plugin.{MODULES[old]}")
    module = importlib.import_module(f"tavq_plugin.{old}")
    public = [name for name in vars(new) if not name.startswith("_") and f"{old}:{name}" not in NAMES]
    with pytest.warns(
        DeprecationWarning, match=rf"tavq_plugin\.{old}\.{public[0]} is now tavq_plugin\.{MODULES[old]}\."
    ):
        assert getattr(module, public[0]) is getattr(new, public[0])


@pytest.mark.parametrize("old", sorted(NAMES))
def test_an_old_name_is_found(old):
    module, name = old.split(":")
    target, new_name = new_place(module, name)
    with pytest.warns(DeprecationWarning, match=rf"{name} is now tavq_plugin\.{target}\.{new_name};"):
        found = getattr(importlib.import_module(f"tavq_plugin.{module}"), name)
    assert found is getattr(importlib.import_module(f"tavq_plugin.{target}"), new_name)


def test_imports_as_they_were_written():
    lines = (
        "from tavq_plugin.align import solve, TextAlignment",
        "from tavq_plugin.align.transport import solve as same",
        "from tavq_plugin.training.host import small_vqgan",
        "from tavq_plugin.text import embed",
        "import tavq_plugin.baselines.method",
        "assert solve is same and callable(small_vqgan) and embed.TextEncoder",
        "assert tavq_plugin.baselines.method.Corpus",
    )
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tavq_plugin.align.solve is now tavq_plugin.ot.solve.solve" in done.stderr


def test_what_was_never_there_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tavq_plugin.nothing")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = importlib.import_module("tavq_plugin.align.transport").nothing


def test_old_arguments_work_and_warn():
    with pytest.warns(DeprecationWarning, match="level_weight= is now level_weights="):
        align = tavq.TextAlignment(4, 5, level_weight=(1.0, 0.5, 2.0))
    assert align.level_weights == (1.0, 0.5, 2.0)
    with pytest.raises(TypeError, match="both were given"):
        tavq.TextAlignment(4, 5, level_weight=(1.0, 0.5, 2.0), level_weights=(1.0, 0.5, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tavq.TextAlignment(4, 5, level_weights=(1.0, 0.5, 2.0))


def test_a_recipe_written_before_still_reads(tmp_path):
    old = "host: {target: small, wrap: {beside: true}}\nlevel_weight: 0.5\noptions: {level_weight: [2.5, 2.5, 0.35]}\n"
    (tmp_path / "old.yaml").write_text(old)
    with pytest.warns(DeprecationWarning, match="this recipe uses old names"):
        recipe = read_recipe(tmp_path / "old.yaml")
    assert recipe.codebook_loss_weight == 0.5
    assert recipe.host.wrap == {"detach_added_levels": True} and recipe.options == {"level_weights": [2.5, 2.5, 0.35]}
    assert current_settings(recipe.to_dict()) == recipe.to_dict()


def test_settings_of_an_evaluation_from_before_balance_mean_the_weighted_sum():
    old = {"recipe": {"method": "tavq-shuffled", "options": {}, "level_weight": 1.0}, "weights": [{"method": "vqgan"}]}
    assert written_settings(old) == {
        "recipe": {"method": "tavq-shuffled", "options": {"balance": None}, "codebook_loss_weight": 1.0},
        "weights": [{"method": "vqgan"}],
    }
    named = {"method": "tavq", "options": {"balance": 0.5}}
    assert written_settings(named) == named and current_settings({"method": "tavq"}) == {"method": "tavq"}


def test_a_state_dict_is_as_it_was():
    """Module paths inside state dicts are files' contents, and stay."""
    names = tavq.TextAlignment(4, 5).state_dict().keys()
    assert {"project.0.0.weight", "project.2.2.bias"} <= names and all(isinstance(name, str) for name in names)
    assert torch.is_tensor(tavq.TextAlignment(4, 5).state_dict()["project.0.0.weight"])
