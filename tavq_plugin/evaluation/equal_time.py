"""The steps with which every method trains as long as the reference does, by the seconds that a step took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from tavq_plugin.evaluation.results import RunResults

SAME = 0.02  # a method whose steps would change by no more than this share keeps its runs


def equal_time_steps(runs: Mapping[str, Mapping[int, RunResults]], reference: str, steps: int) -> dict[str, int]:
    """Optimizer steps of each method that take the reference's time for `steps`; at least 1.

    A step's time is the mean over seeds of each run's median. Methods within 2 % of the reference keep `steps`.
    Raises ValueError if a method has no time per step.

    >>> runs = {name: {0: RunResults({"seconds_per_step": s})} for name, s in (("a", 1.0), ("b", 1.25), ("c", 1.01))}
    >>> equal_time_steps(runs, "a", 500)
    {'a': 500, 'b': 400, 'c': 500}
    """
    seconds = {}
    for name, seeds in runs.items():
        known = [
            results.values["seconds_per_step"] for results in seeds.values() if "seconds_per_step" in results.values
        ]
        if not known:
            raise ValueError(f"{name} has no time per step: train it again with this version")
        seconds[name] = statistics.fmean(known)
    asked = {name: max(1, round(steps * seconds[reference] / own)) for name, own in seconds.items()}
    return {name: steps if abs(count - steps) <= SAME * steps else count for name, count in asked.items()}
