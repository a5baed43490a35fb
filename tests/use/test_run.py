"""`tavq.load`: one object for a run; what it refuses; words and places of a text."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.toy_corpus import Letters
from PIL import Image

import tavq_plugin as tavq
from tavq_plugin.cli.demo_folder import save_run
from tavq_plugin.evaluation.plan_maps import plan_maps
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build import build_tokenizer
from tavq_plugin.training.demo_recipe import recipe_of_run

TEXT = "A red circle lies beside blue squares."


def test_a_run_of_a_comparison_is_loaded_with_all_it_has(comparison, run):
    assert (run.name, run.seed, run.recipe.resolution, run.align is not None) == ("tavq", 0, 16, True)
    assert "seconds_per_step" in run.metrics and not run.tokenizer.training
    corpus = run.corpus()
    assert len(corpus.held_out_rows) == 16 and len(run.corpus(split="test").held_out_rows) == 8
    images = to_float(corpus.images[:2])
    tokens = run.tokenizer.tokens(images)
    torch.testing.assert_close(run.tokenizer.decode_tokens(tokens), run.tokenizer.host(images)[0].detach())
    assert tavq.load(comparison / "vqgan" / "seed0").align is None


def test_a_run_of_the_demo_and_one_from_before_the_move_are_loaded(tmp_path):
    settings = {"run": "lambda-0", "seed": 3, "steps": 2, "resolution": 16, "data": "scenes", "n_train": 8, "n_eval": 4}
    tokenizer = build_tokenizer(recipe_of_run(settings))
    metrics = {"psnr": 20.5, "seconds_per_step": 1.0, "plugin_share": 0.1, "history": [1]}
    means = {"word": torch.arange(3.0), "phrase": torch.ones(3), "sentence": torch.zeros(3)}
    save_run(tmp_path / "demo", tokenizer, None, settings, metrics, means)
    run = tavq.load(tmp_path / "demo", encoder=Letters())
    assert {name: mean.tolist() for name, mean in run.text_means.items()} == {
        name: mean.tolist() for name, mean in means.items()
    }  # kept with the run, so that no training text is encoded again
    assert (run.name, run.seed, run.metrics["psnr"]) == ("lambda-0", 3, 20.5) and "history" not in run.metrics
    assert len(run.corpus().held_out_rows) == 4  # the scenes are drawn again
    old = tavq.load("tests/data/before_the_move/finished_run")
    assert old.align is not None and len(old.tokenizer.tokens(torch.zeros(1, 3, 16, 16))) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: shutil.rmtree(folder), FileNotFoundError, "no folder"),
        (lambda folder: (folder / "settings.json").unlink(), ValueError, "is no run"),
        (lambda folder: (folder / "history.json").unlink(), ValueError, "is not finished: give the command"),
        (lambda folder: (folder / "tavq.safetensors").unlink(), FileNotFoundError, "has no tavq.safetensors"),
        (
            lambda folder: (folder / "host.safetensors").write_bytes(b"half"),
            ValueError,
            "a file was changed or damaged",
        ),
        (lambda folder: (folder / "method.safetensors").write_bytes(b"half"), ValueError, "a file was damaged"),
        (lambda folder: (folder / "settings.json").write_text("[]"), ValueError, "holds no settings"),
        (
            lambda folder: (folder / "history.json").write_text('{"versions": {"tavq-plugin": "99.1"}}'),
            ValueError,
            "written by tavq-plugin 99.1.*pip install --upgrade",
        ),
    ],
)
def test_a_folder_that_is_no_whole_run_is_refused_with_the_mend(comparison, tmp_path, change, error, message):
    shutil.copytree(comparison / "tavq" / "seed0", tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(error, match=message):
        tavq.load(tmp_path / "run")


def test_a_folder_of_several_runs_names_them(comparison):
    with pytest.raises(ValueError, match=r"holds 2 runs: .*tavq/seed0, vqgan/seed0"):
        tavq.load(comparison)


def test_words_count_the_held_out_images_of_a_code(run):
    corpus = run.corpus()
    rows = list(corpus.held_out_rows)
    with torch.no_grad():
        indices = run.tokenizer.encode(to_float(corpus.images[rows])).levels[1].indices.flatten(1)
    code = int(indices[0, 0])
    found = run.words(code, level=2, top=50)
    holds = (indices == code).any(1).tolist()
    for row in found:
        has = [row.word in corpus.store.units(i, "word") for i in rows]
        assert row.images == sum(a and b for a, b in zip(holds, has, strict=True)) > 0
    assert {row.word for row in found} >= {"red", "circle", "blue", "squares"}
    assert not any(row.above_chance for row in found)  # these words are in every text
    assert code in [row.code for row in run.codes("RED ", level=2, top=1000)]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.words(0, level=4), "there is no level 4: give 1 to 3"),
        (lambda run: run.words(99), "code 99 is none of level 1: give a number from 0 to 31"),
        (lambda run: run.codes("zebra"), "fewer than 2 held-out texts have the word 'zebra'"),
        (lambda run: run.ground(torch.zeros(3, 16, 16), TEXT), "give 3 h w uint8"),
        (lambda run: run.ground(torch.zeros(3, 16, 16, dtype=torch.uint8), "一匹の犬"), "no word was found"),
    ],
)
def test_what_does_not_exist_is_refused(run, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(run)


def test_grounding_gives_the_plans_of_the_heads(run, tmp_path):
    image = run.corpus().images[20]
    found = run.ground(image, TEXT)
    assert [level.level for level in found.levels] == [1, 2, 3]
    assert list(found.units) == ["word", "phrase", "sentence"] and "red" in found.units["word"]
    assert found.units["sentence"] == [TEXT]
    with torch.no_grad():
        codes = run.tokenizer.encode(to_float(image[None]))
        for index, level in enumerate(found.levels):
            store = run.corpus().store
            batch = tavq_units(store, level.granularity)
            plan = plan_maps(run.align, codes.levels[index].quantized, batch, index)[0]
            torch.testing.assert_close(level.plan, plan)
            assert level.heat.shape == (len(level.units), 16, 16) and level.heat.dtype == np.float32
            torch.testing.assert_close(level.plan.sum(), torch.tensor(1.0))
            share = level.plan.flatten(1) / level.plan.flatten(1).sum(1, keepdim=True)
            entropy = torch.special.entr(share).sum(1) / np.log(share.shape[1])
            torch.testing.assert_close(level.entropy, entropy, rtol=1e-4, atol=1e-5)
            assert level.near_uniform.tolist() == [value > 0.99 for value in entropy.tolist()]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    again = run.ground(tmp_path / "image.png", TEXT)
    assert torch.equal(again.plans[0], found.plans[0])


def tavq_units(store, granularity):
    """The units of TEXT, centred on the means of the corpus."""
    from dataclasses import replace

    from tavq_plugin.text.store import TextStore

    return replace(TextStore.build([TEXT], Letters()), means=store.means).batch(rows=[0])[granularity]


def test_an_image_of_another_size_is_cut_as_in_training(run):
    wide = torch.randint(256, (3, 16, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run.image(wide), wide[:, :, 12:28])


def test_a_run_without_heads_or_with_another_encoder_says_so(comparison, run):
    class Wide(Letters):
        dim = 7

        def encode(self, texts, progress=None):
            return torch.ones(len(texts), 7)

    image = run.corpus().images[20]
    with pytest.raises(ValueError, match="has no heads of an alignment"):
        tavq.load(comparison / "vqgan" / "seed0").ground(image, TEXT)
    with pytest.raises(ValueError, match="encoded with width 7, and this run was trained with 6: give encoder="):
        tavq.load(comparison / "tavq" / "seed0", encoder=Wide()).ground(image, TEXT)


def test_data_that_are_gone_are_asked_for(comparison, tmp_path):
    shutil.copytree(comparison / "tavq" / "seed0", tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    settings["corpus"]["name"] = "/nowhere/photos"
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(FileNotFoundError, match="/nowhere/photos.* give their folder, by data= or --data"):
        tavq.load(tmp_path / "run", encoder=Letters()).words(0)
