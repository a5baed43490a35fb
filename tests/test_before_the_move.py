"""Runs, stores and recipes that commit 7208d31 wrote, before files and settings had today's names, still load."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_encoders import save_tiny_bert
from helpers.toy_corpus import corpus

from tavq_plugin.preprocessing.prepare_store import prepare
from tavq_plugin.text import ShardedStore, TextEncoder, TextStore
from tavq_plugin.text.manifest import find_faults, merge_stores
from tavq_plugin.training import fit
from tavq_plugin.training.recipe_yaml import read_recipe

OLD = Path(__file__).parent / "data" / "before_the_move"


def old_corpus():
    """Today's toy corpus with the store that was made then, by older rules of splitting."""
    return replace(corpus(), store=TextStore.load(OLD / "store.safetensors"))


@pytest.fixture
def recipe():
    pytest.importorskip("diffusers")
    with pytest.warns(DeprecationWarning, match="old names"):
        return read_recipe(OLD / "recipe.yaml")


def test_a_finished_run_is_loaded(recipe, tmp_path):
    folder = shutil.copytree(OLD / "finished_run", tmp_path / "run")
    fitted = fit("tavq", recipe, old_corpus(), folder)
    assert fitted.method.align.level_weights == (2.5, 2.5, 0.35) and len(fitted.history) == 4
    assert (folder / "history.json").read_bytes() == (OLD / "finished_run" / "history.json").read_bytes()


def test_a_stopped_run_ends_as_the_one_that_was_not_stopped(recipe, tmp_path):
    folder = shutil.copytree(OLD / "stopped_run", tmp_path / "run")
    continued = fit("tavq", recipe, old_corpus(), folder)
    whole = fit("tavq", recipe, old_corpus(), shutil.copytree(OLD / "finished_run", tmp_path / "whole"))
    for ours, theirs in zip(continued.history, whole.history, strict=True):
        assert {name: ours[name] for name in ("pixel", "alignment", "level")} == pytest.approx(
            {name: theirs[name] for name in ("pixel", "alignment", "level")}, rel=1e-4
        )
    torch.testing.assert_close(
        continued.tokenizer.host.state_dict(), whole.tokenizer.host.state_dict(), rtol=1e-3, atol=1e-4
    )


def test_other_settings_are_still_refused(recipe, tmp_path):
    folder = shutil.copytree(OLD / "finished_run", tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with codebook_loss_weight=0\.5, and this one has 1\.0"):
        fit("tavq", replace(recipe, codebook_loss_weight=1.0), old_corpus(), folder)


def test_stores_are_read_and_other_rules_of_splitting_do_not_mix_with_them(tmp_path):
    store = TextStore.load(OLD / "store.safetensors")
    assert torch.equal(store.table, corpus().store.table) and store.batch([0, 9])["word"].mask.any()
    folder = shutil.copytree(OLD / "store", tmp_path / "store")
    opened = ShardedStore.open(folder)
    assert not list(find_faults(folder)) and len(opened) == 6 and opened.batch(["5"])["word"].mask.any()
    assert opened.counts()["unread"] == opened.in_memory().unread == 0
    lines = "".join(f'{{"id": "{i}", "text": "A red dog runs. Two men sleep in house {i}."}}\n' for i in range(6))
    (tmp_path / "captions.jsonl").write_text(lines)
    bert = save_tiny_bert(tmp_path / "tinybert")

    def make(out):
        return prepare(tmp_path / "captions.jsonl", out, lambda: TextEncoder.from_pretrained(bert), shard_size=3)

    with pytest.raises(ValueError, match="units-1.*units-2.*prepare the texts again in another folder"):
        make(folder)
    assert not list(find_faults(folder))
    assert make(tmp_path / "new").finished
    with pytest.raises(ValueError, match=r"units-[12].*units-[12]"):
        merge_stores([folder, tmp_path / "new"], tmp_path / "merged")
