"""What `tavq demo` starts from: the VQGAN that ships with the package, whole and unchanged."""

import shutil

import pytest
import torch

from tavq_plugin.cli.demo_settings import demo_settings
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.evaluation.metrics.image import psnr
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build import build_tokenizer
from tavq_plugin.training.demo_recipe import PACKAGED, PACKAGED_RECIPE, demo_recipe, packaged_checkpoint, recipe_of_run
from tavq_plugin.training.recipe_yaml import read_recipe

pytest.importorskip("taming")
MEND = r"install the package again .* or make the VQGAN yourself \(python benchmarks/demo_vqgan.py"


def test_a_missing_packaged_vqgan_is_named_with_the_mend(tmp_path):
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(FileNotFoundError, match=f"gone.safetensors, .*is missing: {MEND}"):
        packaged_checkpoint(gone)
    with pytest.raises(FileNotFoundError, match=MEND):
        demo_settings(packaged=gone)


def test_a_changed_packaged_vqgan_is_refused_with_both_hashes(tmp_path):
    file = shutil.copy(packaged_checkpoint(), tmp_path / "changed.safetensors")
    with open(file, "r+b") as content:
        content.seek(-1, 2)
        last = content.read(1)
        content.seek(-1, 2)
        content.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match=rf"has sha256 [0-9a-f]{{64}}, and [0-9a-f]{{64}} was expected: {MEND}"):
        demo_settings(packaged=file)


def test_the_packaged_vqgan_is_small_and_reconstructs_scenes_that_it_has_not_seen():
    file = packaged_checkpoint()
    assert file.stat().st_size <= 8e6 and PACKAGED_RECIPE.parent == file.parent
    tokenizer = build_tokenizer(demo_settings().recipe).eval()
    images = to_float(scenes(40, seed=0, resolution=32).images)
    with torch.no_grad():
        codes = tokenizer.encode(images)
        quality = psnr(tokenizer.decode(codes), images).mean().item()
    assert quality > 18 and len(codes.final.indices.unique()) > 128  # of 512 codes


@pytest.mark.parametrize(("resolution", "host"), [(32, PACKAGED), (64, "small")])
def test_other_resolutions_train_from_scratch_and_say_so(resolution, host):
    settings = demo_settings(resolution=resolution)
    assert settings.host == host and bool(settings.recipe.init) == (host == PACKAGED)
    assert ("trains from scratch" in settings.start) == (host == "small")
    assert settings.checkpoint.keys() == ({"init_sha256"} if host == PACKAGED else set())


def test_the_alignment_is_balanced_unless_a_weight_is_given():
    from tavq_plugin.losses.alignment_settings import AlignmentSettings

    from_scratch = demo_settings(resolution=64).alignment
    default = AlignmentSettings().balance
    assert from_scratch["balance"] == (list(default) if isinstance(default, tuple) else default)
    from_trained = demo_settings().alignment
    assert AlignmentSettings(balance=from_trained["balance"], rise=from_trained["rise"]).balance_at(0.0) == (0, 0, 0)
    assert "weight" not in from_scratch and "weight" not in from_trained
    weighted = demo_settings(weight=0.1)
    assert weighted.alignment["weight"] == 0.1 and "balance" not in weighted.alignment
    assert weighted.recipe.host.wrap["detach_added_levels"] is False


def test_the_recipe_of_a_finished_run_has_its_host_and_no_checkpoint():
    settings = {"run": "shuffled", "host": PACKAGED, "resolution": 32, "seed": 3, "steps": 7}
    recipe = recipe_of_run(settings)
    assert (recipe.method, recipe.seed, recipe.steps, recipe.init) == ("tavq-shuffled", 3, 7, "")
    assert recipe.host.params == read_recipe(PACKAGED_RECIPE).host.params
    former = recipe_of_run({"run": "tavq", "resolution": 32, "seed": 3, "steps": 7})
    assert former.host.target == "small"
    assert demo_recipe(host="small", resolution=32, seed=3, steps=7).host == former.host
