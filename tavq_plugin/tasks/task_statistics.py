"""The results of one task over runs and seeds: means, differences from the baseline, and codes against controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.evaluation.metrics.statistics import SIGNIFICANCE, difference, holm, mean_interval
from tavq_plugin.tasks.task import OF_CODES, TaskResult

Seeds = Mapping[int, TaskResult]  # seed → result


def task_statistics(runs: Mapping[str, Seeds], baseline: str | None) -> dict[str, Any]:
    """What the results of one task say: "means", "differences" and "above_controls".

    - means: run → condition → metric → {"mean", "low", "high", "over"}, with 95 % intervals over seeds and images
    - differences: metric → run → the fields of `Difference`, "minus" (the baseline), "p_holm" and "stands"; the codes
      of each run minus those of the baseline, on the seeds that both have
    - above_controls: run → control → metric → the fields of `Difference`: a run's codes minus its control
    """
    return {
        "means": {name: _means(seeds) for name, seeds in runs.items()},
        "differences": {} if baseline is None else _differences(runs, baseline),
        "above_controls": {name: _above_controls(seeds) for name, seeds in runs.items()},
    }


def _means(seeds: Seeds) -> dict[str, dict[str, dict[str, Any]]]:
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for condition in _conditions(seeds):
        table[condition] = {}
        for metric in _metrics(seeds, condition):
            shared = [seed for seed in sorted(seeds) if _has(seeds[seed], condition, metric)]
            mean = sum(seeds[seed].conditions[condition].values[metric] for seed in shared) / len(shared)
            values = _values(seeds, shared, condition, metric)
            interval = None if _is_empty(values) else mean_interval(values)._asdict()
            table[condition][metric] = {**(interval or dict.fromkeys(("low", "high", "over"))), "mean": mean}
    return table


def _differences(runs: Mapping[str, Seeds], baseline: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Each run's codes minus the baseline's, with p-values adjusted over the runs (Holm)."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for metric in _metrics(runs[baseline], OF_CODES):
        rows = {
            name: row
            for name, seeds in runs.items()
            if name != baseline and (row := _row(seeds, OF_CODES, runs[baseline], OF_CODES, metric)) is not None
        }
        for name, p in holm({name: row["p"] for name, row in rows.items()}).items():
            rows[name] |= {"minus": baseline, "p_holm": p, "stands": p is not None and p < SIGNIFICANCE}
        if rows:
            table[metric] = rows
    return table


def _above_controls(seeds: Seeds) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        control: {
            metric: row
            for metric in _metrics(seeds, control)
            if (row := _row(seeds, OF_CODES, seeds, control, metric)) is not None
        }
        for control in _conditions(seeds)
        if control != OF_CODES
    }


def _row(one: Seeds, condition: str, other: Seeds, control: str, metric: str) -> dict[str, Any] | None:
    """The difference of two conditions on the seeds that have both; None if there is nothing to compare."""
    shared = [
        seed
        for seed in sorted(one.keys() & other.keys())
        if _has(one[seed], condition, metric) and _has(other[seed], control, metric)
    ]
    if not shared:
        return None
    first, second = _values(one, shared, condition, metric), _values(other, shared, control, metric)
    if first.shape != second.shape or _is_empty(first - second):  # one has no values per image, or on no image both
        first, second = (
            torch.tensor([side[seed].conditions[label].values[metric] for seed in shared])
            for side, label in ((one, condition), (other, control))
        )
    return {**difference(first, second)._asdict(), "seeds": shared}


def _values(seeds: Seeds, shared: list[int], condition: str, metric: str) -> Tensor:
    """Seeds × images if every seed has a value per image, else one value per seed; s n or s."""
    conditions = [seeds[seed].conditions[condition] for seed in shared]
    each = [part.per_image.get(metric) for part in conditions]
    known = [values.double() for values in each if values is not None]
    if len(known) == len(each) and len({len(values) for values in known}) == 1:
        return torch.stack(known)
    return torch.tensor([part.values[metric] for part in conditions], dtype=torch.float64)


def _is_empty(values: Tensor) -> bool:
    """Whether no image has a finite value with every seed."""
    return not values.isfinite().all(0).any()


def _has(result: TaskResult, condition: str, metric: str) -> bool:
    return condition in result.conditions and metric in result.conditions[condition].values


def _conditions(seeds: Seeds) -> list[str]:
    return list(dict.fromkeys(name for result in seeds.values() for name in result.conditions))


def _metrics(seeds: Seeds, condition: str) -> list[str]:
    found = (result.conditions[condition].values for result in seeds.values() if condition in result.conditions)
    return list(dict.fromkeys(metric for values in found for metric in values))
