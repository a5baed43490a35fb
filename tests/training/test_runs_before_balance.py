"""Balanced gradients are the default of new runs; a run from before stays the weighted sum that it was."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from helpers.toy_corpus import corpus, recipe, stopped, weights

from tavq_plugin.evaluation.plan import Plan
from tavq_plugin.evaluation.sources.finished_runs import runs_in
from tavq_plugin.losses.alignment_settings import BALANCE
from tavq_plugin.training import fit
from tavq_plugin.training.recipe_yaml import RECIPE_HEAD, read_recipe
from tavq_plugin.training.run_folder import resolved_recipe

pytest.importorskip("taming")
pytest.importorskip("accelerate")
SETTINGS = dict(steps=4, checkpoint_every=2)


def aged(folder, *, header=True):
    """Make a folder look as it did before balance existed: its options do not name it."""
    saved = json.loads((folder / "settings.json").read_text())
    del saved["options"]["balance"]
    (folder / "settings.json").write_text(json.dumps(saved))
    text = yaml.safe_dump({name: value for name, value in saved.items() if name != "corpus"}, sort_keys=False)
    (folder / "recipe.yaml").write_text((RECIPE_HEAD if header else "") + text)
    return folder


def options_in(folder):
    return json.loads((folder / "settings.json").read_text())["options"]


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    """A finished weighted sum, as it was before balance existed."""
    folder = tmp_path_factory.mktemp("before") / "tavq" / "seed0"
    fit("tavq", recipe(**SETTINGS, options={"balance": None}), corpus(), folder)
    return aged(folder)


def test_a_stopped_run_from_before_ends_as_the_weighted_sum(summed, tmp_path):
    stopped("tavq", recipe(**SETTINGS, options={"balance": None}), tmp_path / "run", after=3)
    resumed = fit("tavq", recipe(**SETTINGS), corpus(), aged(tmp_path / "run"))
    assert not resumed.method.settings.is_balanced and options_in(tmp_path / "run") == {"balance": None}
    whole = fit("tavq", recipe(**SETTINGS), corpus(), summed, progress=lambda *row: pytest.fail("trained"))
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "balance" not in options_in(summed)  # a finished run is only read


def test_a_new_run_saves_its_balance_and_keeps_it(tmp_path):
    fitted = fit("tavq", recipe(**SETTINGS), corpus(), tmp_path / "run")
    assert fitted.method.settings.balance == BALANCE and options_in(tmp_path / "run") == {"balance": list(BALANCE)}
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["options"] == {"balance": list(BALANCE)}
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())
    (tmp_path / "run" / "settings.json").write_text(json.dumps({**saved, "options": {"balance": 0.125}}))
    again = fit("tavq", recipe(**SETTINGS), corpus(), tmp_path / "run", progress=lambda *row: pytest.fail("trained"))
    assert again.method.settings.balance == 0.125  # as if the default had changed since


@pytest.mark.parametrize("options", [{"weight": 0.2}, {"balance": 0.25}, {"balance": [1, 1, 0.5]}])
def test_another_method_in_its_folder_is_refused(summed, options):
    said = "options.weight" if "weight" in options else r"options.balance='null', and this one has"
    with pytest.raises(ValueError, match=f"holds a run with {said}"):
        fit("tavq", recipe(**SETTINGS, options=options), corpus(), summed)


def test_a_recipe_that_a_run_wrote_is_a_weighted_sum_and_the_users_own_is_not(summed, tmp_path):
    text = (summed / "recipe.yaml").read_text()
    (tmp_path / "elsewhere.yaml").write_text(text)
    assert read_recipe(tmp_path / "elsewhere.yaml").options == {"balance": None}  # by its header
    assert read_recipe(tmp_path / "elsewhere.yaml", ["options.balance=0.5"]).options == {"balance": 0.5}
    assert read_recipe(tmp_path / "elsewhere.yaml", ["method=vqgan"]).options == {}
    (tmp_path / "own.yaml").write_text(text.removeprefix(RECIPE_HEAD))
    own = read_recipe(tmp_path / "own.yaml")
    assert own.options == {} and resolved_recipe(own).options == {"balance": list(BALANCE)}
    assert resolved_recipe(replace(own, options={"weight": 0.3})).options == {"weight": 0.3, "balance": None}
    assert resolved_recipe(replace(own, method="tavq-weighted-sum")).options == {"balance": None}


def test_a_recipe_without_our_header_is_known_by_the_run_beside_it(tmp_path):
    stopped("tavq", recipe(**SETTINGS, options={"balance": None}), tmp_path / "run", after=3)
    folder = aged(tmp_path / "run", header=False)
    assert read_recipe(folder / "recipe.yaml").options == {"balance": None}
    resumed = fit("tavq", read_recipe(folder / "recipe.yaml"), corpus(), folder)
    assert not resumed.method.settings.is_balanced


def test_a_comparison_from_before_goes_on_with_the_weighted_sum(summed):
    plan = Plan(("tavq", "tavq-shuffled", "vqgan"), (0, 1), recipe(**SETTINGS), summed.parent.parent)
    assert [job.recipe.options for job in plan.jobs] == 2 * [{"balance": None}, {"balance": list(BALANCE)}, {}]
    changed = replace(plan, method_options={"tavq": {"balance": 0.5}, "tavq-shuffled": {"balance": 0.25}})
    assert [job.recipe.options for job in changed.jobs[:2]] == [{"balance": 0.5}, {"balance": 0.25}]


def test_a_run_from_before_is_evaluated_as_the_weighted_sum(summed):
    (run,) = runs_in(summed, None, allow=())
    assert run.recipe.options == {"balance": None}
