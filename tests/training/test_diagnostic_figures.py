"""Diagnostics in the history: in which rows they are, that they do not change training, and take no step's time."""

import json
import time

import pytest
import torch
from helpers.toy_corpus import Letters, Noisy, corpus, recipe, stopped, weights

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.losses import TextAlignment
from tavq_plugin.losses.diagnostics import Diagnostics
from tavq_plugin.methods import METHODS
from tavq_plugin.text.store import TextStore
from tavq_plugin.training import fit

pytest.importorskip("taming")
pytest.importorskip("accelerate")
FIGURES = ("own_minus_other", "effective_rank", "gradient_ratio")
BY_LEVEL = {f"{figure}_{level}" for figure in FIGURES[:2] for level in (1, 2, 3)}
TAPS = {"gradient_ratio_quantize_input", "gradient_ratio_quantize.embedding.weight"}
BALANCED, SUM = {"balance": 1.0}, {"balance": None}


def figures(row):
    return {name: value for name, value in row.items() if name.startswith(FIGURES)}


def others(history):
    return [
        {name: value for name, value in row.items() if name not in (*figures(row), "seconds", "plugin_share")}
        for row in history
    ]


@pytest.mark.parametrize(
    "options", [BALANCED, {**SUM, "distribution": "gaussian", "samples": 4}, {**SUM, "solver": "emd"}]
)
def test_they_change_no_bit_of_training(tmp_path, options):
    settings = dict(steps=3, batch_size=4, options=options)
    with_them, without = (
        fit("tavq", recipe(**settings, diagnose_every=every), corpus(), tmp_path / str(every)) for every in (1, 0)
    )
    ours, theirs = weights(with_them), weights(without)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert others(with_them.history) == others(without.history)
    assert all(figures(row) for row in with_them.history) and not any(figures(row) for row in without.history)


def test_the_rows_hold_one_figure_per_level_and_tensor(tmp_path):
    run = fit("tavq", recipe(steps=1, batch_size=4, options=BALANCED), corpus(), tmp_path / "run")
    found = figures(run.history[-1])
    assert found.keys() >= BY_LEVEL | TAPS and len(found) == len(BY_LEVEL | TAPS) + 2  # two taps
    assert all(1 <= found[f"effective_rank_{level}"] <= 8 for level in (1, 2, 3))
    last = run.method.align.last
    assert [found[f"own_minus_other_{level}"] for level in (1, 2, 3)] == last["own_minus_other"].tolist()
    assert [found[name] for name in found if name.startswith("gradient")] == last["gradient_ratio"].tolist()


@pytest.mark.parametrize(
    ("method", "changes", "steps"),
    [
        ("tavq", {"diagnose_every": 3}, [3, 6, 8]),
        ("tavq", {"diagnose_every": 3, "log_every": 2}, [4, 8]),
        ("tavq", {"diagnose_every": 4, "options": {**SUM, "every": 3}}, [6]),  # aligned in steps 3 and 6
        ("tavq", {"diagnose_every": 2, "start": {"settle_share": 0.5}}, [5, 7, 8]),
        ("vqgan", {}, [8]),
    ],
)
def test_in_which_rows_they_are(tmp_path, method, changes, steps):
    options = SUM if method == "tavq" else {}
    run = fit(method, recipe(**{"steps": 8, "options": options, **changes}), corpus(), tmp_path / "run")
    assert [row["step"] + 1 for row in run.history if figures(row)] == steps
    expected = BY_LEVEL if method == "tavq" else {name for name in BY_LEVEL if name.startswith("effective_rank")}
    assert all(figures(row).keys() in (set(), expected) for row in run.history)


def test_a_resumed_run_has_them_in_the_same_rows(tmp_path):
    settings = recipe(steps=6, checkpoint_every=2, diagnose_every=3, options={**BALANCED, "every": 2})
    whole = fit("tavq", settings, corpus(), tmp_path / "whole")
    stopped("tavq", settings, tmp_path / "stopped", after=5)
    resumed = fit("tavq", settings, corpus(), tmp_path / "stopped")
    assert [figures(row) for row in resumed.history] == [figures(row) for row in whole.history]
    assert [row["step"] + 1 for row in whole.history if figures(row)] == [4, 6]


def test_how_often_they_are_read_may_change(tmp_path):
    run = fit("vqgan", recipe(steps=1), corpus(), tmp_path / "run")
    again = fit("vqgan", recipe(steps=1, diagnose_every=7), corpus(), tmp_path / "run")
    assert again.history == run.history
    with pytest.raises(ValueError, match="diagnose_every must be 0 or more"):
        recipe(diagnose_every=-1)


def test_a_figure_that_is_not_finite_is_left_out(tmp_path):
    whole = corpus()
    texts = ["", *whole.texts[1:2], *[""] * 8]  # one image with text has no other to be compared with
    store = TextStore.build(texts, Letters(), centre_on=range(8))
    run = fit("tavq", recipe(steps=1, options=SUM), Corpus("toy", whole.images, texts, store, 8), tmp_path / "run")
    assert figures(run.history[-1]).keys() == {f"effective_rank_{level}" for level in (1, 2, 3)}
    text = (tmp_path / "run" / "history.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["history"] == run.history


class Slow(Diagnostics):
    def __getitem__(self, name):
        time.sleep(1.0)
        return torch.zeros(3)

    def __contains__(self, name):
        return name == "own_minus_other"


class Unhurried(Noisy):
    """Its diagnostics take a second."""

    def __init__(self, tokenizer, corpus, *, seed=0):
        super().__init__(tokenizer, corpus, seed=seed)
        self.align = TextAlignment(tokenizer, 6)
        self.align.last = Slow()


def test_they_take_no_steps_time(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "unhurried", f"{__name__}:Unhurried")
    start = time.perf_counter()
    run = fit("unhurried", recipe(steps=2, diagnose_every=1), corpus(), tmp_path / "run")
    assert time.perf_counter() - start > 2 and run.history[0]["own_minus_other_1"] == 0
    assert all(row["seconds"] < 1 for row in run.history) and run.seconds_per_step < 1
