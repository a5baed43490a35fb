"""Tasks on several runs: what is kept, resumed, compared, recorded and refused."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.counting_task import Counting
from helpers.tiny_hosts import tiny

from tavq_plugin.evaluation.metrics.statistics import difference
from tavq_plugin.evaluation.sources.finished_runs import Loaded
from tavq_plugin.evaluation.sources.read_sources import UserTokenizer
from tavq_plugin.hosts.tokenizer import wrap
from tavq_plugin.tasks.read_task import read_task
from tavq_plugin.tasks.run_tasks import Reporting, TaskPlan, run_tasks, save_copy
from tavq_plugin.tasks.task import Condition, TaskResult
from tavq_plugin.tasks.task_data import drawn_data
from tavq_plugin.tasks.task_statistics import task_statistics

pytest.importorskip("taming")
pytest.importorskip("jinja2")
DATA = drawn_data(resolution=16, n_train=6, n_eval=5)


class Letters:
    """In the place of the text encoder, which no test here uses."""

    fingerprint = "letters"


def sources(*names, seeds=(0,)):
    tokenizer = wrap(tiny("taming-vq"), log_summary=False)
    return [
        UserTokenizer(name, f"{name}.py:build", Loaded(tokenizer, None, True), seed=s) for name in names for s in seeds
    ]


def plan(out, task=None, *, given=None, **settings):
    return TaskPlan({"counting": task or Counting()}, given or sources("plain", "aligned"), DATA, out, **settings)


def result_of(match):
    values = torch.tensor(match)
    return TaskResult({"codes": Condition({"match": float(values.nanmean())}, {"match": values})})


def test_every_run_has_its_conditions_protocol_and_difference(tmp_path):
    seen = []
    content = run_tasks(
        plan(tmp_path, given=sources("plain", "aligned", seeds=(0, 1))),
        encoder=Letters(),
        reporting=Reporting(started=lambda label, number: seen.append((label, number))),
    )
    assert content == json.loads((tmp_path / "tasks.json").read_text())
    task = content["tasks"]["counting"]
    assert list(task["runs"]) == ["plain", "aligned"] and list(task["runs"]["plain"]) == ["0", "1"]
    one = task["runs"]["aligned"]["1"]
    assert list(one["conditions"]) == ["codes", "shuffled codes", "majority"] and one["missing"] == {
        "spice": "it needs Java"
    }
    assert one["protocol"] == {"images": 5}
    assert seen[0] == ("counting on plain, seed 0", 4) and len(seen) == 4
    # one host in both: no difference, over both seeds and the images with a value
    row = task["differences"]["match"]["aligned"]
    assert row["mean"] == 0 and row["minus"] == "plain" and row["seeds"] == [0, 1] and row["over"] == "seeds and images"
    above = task["above_controls"]["aligned"]
    assert above["shuffled codes"]["match"]["mean"] == pytest.approx(0.1)
    assert above["majority"]["match"]["over"] == "seeds"  # it has no values per image
    assert content["protocol"]["baseline"] == "plain" and content["protocol"]["n_train"] == 6
    assert content["protocol"]["runs"]["plain, seed 0"]["tokens"] == 16
    assert {"tasks.html", "tasks.md"} <= {path.name for path in tmp_path.iterdir()}


def test_the_same_command_reads_what_is_finished_and_another_one_makes_it_anew(tmp_path):
    task = Counting()
    first = run_tasks(plan(tmp_path, task), encoder=Letters())
    assert len(task.calls) == 2
    assert run_tasks(plan(tmp_path, task), encoder=Letters()) == first and len(task.calls) == 2
    page = (tmp_path / "tasks.html").read_bytes()
    run_tasks(plan(tmp_path, task), encoder=Letters())
    assert (tmp_path / "tasks.html").read_bytes() == page
    run_tasks(plan(tmp_path, task, steps=1), encoder=Letters())
    assert task.calls[2:] == [("plain", 0, 1), ("aligned", 0, 1)]
    run_tasks(plan(tmp_path, task, steps=1, overrides=["model.width=64"]), encoder=Letters())
    assert len(task.calls) == 6


def test_an_interrupted_command_goes_on_where_it_stopped(tmp_path):
    def stop(label):
        raise KeyboardInterrupt

    task = Counting()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(plan(tmp_path, task), encoder=Letters(), reporting=Reporting(finished=stop))
    run_tasks(plan(tmp_path, task), encoder=Letters())
    assert [name for name, *_ in task.calls] == ["plain", "aligned"]


def test_a_task_that_the_data_cannot_serve_is_recorded_with_its_reason(tmp_path):
    blind = replace(DATA.train, captions=())
    data = DATA._replace(train=blind)
    other = Counting()
    other.unfit = lambda data: ""
    tasks = {"counting": Counting(), "other": other}
    content = run_tasks(TaskPlan(tasks, sources("plain"), data, tmp_path), encoder=Letters())
    assert content["tasks"]["counting"] == {"unfit": "no image has a caption: give data with captions"}
    assert content["tasks"]["other"]["runs"]["plain"]
    assert "Not run: no image has a caption" in (tmp_path / "tasks.md").read_text()
    assert "no image has a caption" in (tmp_path / "tasks.html").read_text()
    with pytest.raises(ValueError, match="counting: no image has a caption"):
        TaskPlan({"counting": Counting()}, sources("plain"), data, tmp_path)


@pytest.mark.parametrize("task", [Counting(broken=("plain",)), Counting(nan=("plain",))])
def test_a_run_that_breaks_is_named_and_the_others_go_on(tmp_path, task):
    content = run_tasks(plan(tmp_path, task), encoder=Letters())
    assert "nan" in content["failed"]["counting"]["plain, seed 0"]
    assert list(content["tasks"]["counting"]["runs"]) == ["aligned"]
    assert "plain, seed 0 broke" in (tmp_path / "tasks.md").read_text()


def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="--baseline nobody: no run has this name; give one of plain, aligned"):
        plan(out, baseline="nobody")
    with pytest.raises(ValueError, match="did you mean fit.steps"):
        plan(out, overrides=["fit.step=5"])
    with pytest.raises(ValueError, match="steps must be above 0"):
        plan(out, overrides=["fit.steps=0"])
    with pytest.raises(FileNotFoundError, match="no folder"):
        plan(out, weights=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no task 'nothing'"):
        read_task(["nothing"], ["x"], out=out)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_task(["counting"], [str(tmp_path / "nowhere")], out=out, tasks={"counting": Counting()})
    assert not out.exists()


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "tasks.json").write_text("mine")
    with pytest.raises(FileExistsError, match="tasks.json is in the way"):
        run_tasks(plan(tmp_path), encoder=Letters())
    with pytest.raises(FileExistsError, match="tasks.json is in the way"):
        save_copy({}, tmp_path / "tasks.json")
    assert (tmp_path / "tasks.json").read_text() == "mine"
    save_copy({"tasks": {}}, tmp_path / "copy.json")
    save_copy({"tasks": {}}, tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text()) == {"tasks": {}}


def test_differences_are_those_of_the_shared_seeds_and_images():
    one = {0: result_of([0.5, 0.25, float("nan")]), 1: result_of([0.5, 0.75, 1.0]), 2: result_of([0.0, 0.0, 0.0])}
    other = {0: result_of([0.25, 0.25, 1.0]), 1: result_of([0.5, 0.5, 0.5])}
    row = task_statistics({"base": other, "new": one}, "base")["differences"]["match"]["new"]
    first, second = (torch.stack([side[seed].conditions["codes"].per_image["match"] for seed in (0, 1)]).double()
                     for side in (one, other))  # fmt: skip
    expected = difference(first, second)
    assert row["seeds"] == [0, 1] and row["stands"] is False and row["p"] is None
    assert (row["mean"], row["low"], row["high"]) == (expected.mean, expected.low, expected.high)
    assert row["mean"] == pytest.approx((0.25 + 0.0 + 0.0 + 0.25) / 4)
