"""The steps with which every method trains as long as the reference does, by the seconds that a step took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping

from tavq_plugin.evaluation.results import RunResults

SAME = 0.02  # a method whose steps would change by no more than this share keeps its runs


def equal_time_steps(
    runs: Mapping[str, Mapping[int, RunResults]],
    reference: str,
    steps: int,
    *,
    former: Mapping[str, Collection[int]] | None = None,
) -> dict[str, int]:
    """Optimizer steps of each method that take the reference's time for `steps`; at least 1.

    A step's time is the mean over seeds of each run's median. Methods within 2 % of the reference keep `steps`.
    `former` has the steps of each method's earlier runs at equal time: the nearest are kept if they are within 2 % too,
    because times are noisy and change a little with every further seed. Raises ValueError if a method has no time per
    step, or none above 0.

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
        if not 0 < seconds[name] < math.inf:
            raise ValueError(f"a step of {name} took {seconds[name]:g} seconds, so no time can be made equal")
    asked = {name: max(1, round(steps * seconds[reference] / own)) for name, own in seconds.items()}
    return {name: _near(count, [steps, *(former or {}).get(name, ())], SAME * steps) for name, count in asked.items()}


def _near(count: int, known: Collection[int], within: float) -> int:
    """The first of the known numbers that is nearest to `count`, if it is near enough; else `count`."""
    nearest = min(known, key=lambda number: abs(number - count))
    return nearest if abs(nearest - count) <= within else count
