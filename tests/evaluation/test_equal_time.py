"""Steps at equal time: from noisy seconds, with runs that are there already, and without any time."""

import pytest

from tavq_plugin.evaluation.equal_time import equal_time_steps
from tavq_plugin.evaluation.plan import plan_of
from tavq_plugin.evaluation.results import RunResults


def runs(**seconds):
    return {
        name: {seed: RunResults({"seconds_per_step": value}) for seed, value in enumerate(of_seeds)}
        for name, of_seeds in seconds.items()
    }


def test_steps_are_those_of_the_mean_time_over_seeds():
    assert equal_time_steps(runs(a=[1.0, 1.0], b=[1.2, 1.3], c=[0.5, 0.5]), "a", 500) == {"a": 500, "b": 400, "c": 1000}


def test_a_further_seed_that_changes_the_time_a_little_keeps_the_runs_that_are_there():
    known = runs(a=[1.0, 1.0], b=[1.25, 1.27])
    assert equal_time_steps(known, "a", 500) == {"a": 500, "b": 397}
    assert equal_time_steps(known, "a", 500, former={"b": [300, 400]}) == {"a": 500, "b": 400}
    assert equal_time_steps(runs(a=[1.0], b=[1.5]), "a", 500, former={"b": [400]}) == {"a": 500, "b": 333}


@pytest.mark.parametrize("seconds", [0.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused_by_name(seconds):
    with pytest.raises(ValueError, match="a step of b took"):
        equal_time_steps(runs(a=[1.0], b=[seconds]), "a", 500)
    with pytest.raises(ValueError, match="b has no time per step"):
        equal_time_steps({**runs(a=[1.0]), "b": {0: RunResults()}}, "a", 500)


def test_runs_of_other_steps_have_other_folders(tmp_path):
    from dataclasses import replace

    job = plan_of(out=tmp_path, methods="tavq", seeds="1").jobs[0]
    places = {steps: replace(job, steps=steps).folder for steps in (None, 397, 400)}
    assert len(set(places.values())) == 3 and places[None] == tmp_path / "tavq" / "seed1"
    assert places[400] == tmp_path / "equal-time" / "400-steps" / "tavq" / "seed1"
