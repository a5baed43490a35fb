"""Results of several methods and seeds in tables: means with intervals, and which differences stand."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import torch

from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.metrics.stability import code_word_stability, word_image_stability, word_table
from tavq_plugin.evaluation.metrics.statistics import SIGNIFICANCE, difference, holm, mean_interval
from tavq_plugin.evaluation.metrics.words import code_histograms
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.text_targets import TextTargets

SPREADS = 2.0  # a text metric moves if a method's mean is further than this many spreads from its chance
PAIRS = ("stability_codes", "stability_codes_null", "stability_words")  # metrics of two seeds
Runs = Mapping[str, Mapping[int, RunResults]]  # method → seed → results
Cells = dict[str, dict[str, Any]]  # metric → cell


class PairValues(NamedTuple):
    """What is measured between every two seeds of a method."""

    values: dict[str, dict[str, float]]  # metric → pair of seeds → value
    spreads: dict[str, float]  # pair → standard deviation of the excess of `stability_codes` over dealt texts


class EqualTime(NamedTuple):
    """The runs in which every method trained for the same time."""

    runs: Runs
    steps: Mapping[str, int]  # optimizer steps of each method


def reference_of(runs: Runs) -> str | None:
    """The method that others are compared with: vqgan if it takes part, else the first; None without a second method.

    >>> reference_of({"tavq": {}, "vqgan": {}}), reference_of({"tavq": {}})
    ('vqgan', None)
    """
    if len(runs) < 2:
        return None
    return "vqgan" if "vqgan" in runs else next(iter(runs))


def summarise(
    runs: Runs,
    targets: TextTargets,
    *,
    reference: str | None = None,
    floors: Runs | None = None,
    equal_time: EqualTime | str = "not asked for",
) -> dict[str, Any]:
    """The tables of compare.json: "methods", "floors", "equal_time", "absent", "differences", "best", "unmoved".

    A cell is {"mean", "spread", "seeds", "low", "high", "over", "chance", "chance_spread"}. "spread" is the standard
    deviation over seeds, None for one seed. "seeds" has one value per seed or, for metrics that compare two seeds, per
    pair such as "0-1"; pairs share seeds, so these metrics have no interval and no test. A metric without a value is in
    "absent" with the reason. Methods are compared on the seeds that both have.

    Args:
        runs: Results of each method by seed.
        targets: The texts, for the stability of codes over seeds.
        reference: The method that others are compared with. Default: `reference_of(runs)`.
        floors: Results of each floor by seed. Default: none.
        equal_time: The runs of equal time, or the reason why there are none. Default: "not asked for".

    Raises:
        ValueError: `reference` is not among the methods.
    """
    if reference is not None and reference not in runs:
        raise ValueError(f"the reference {reference!r} has no runs: give one of {', '.join(runs)}")
    reference = reference or reference_of(runs)
    floors = floors or {}
    pairs = {name: stability(seeds, targets) for name, seeds in runs.items()}
    methods = {name: cells(seeds) | _pair_cells(pairs[name]) for name, seeds in runs.items()}
    unmoved = unmoved_metrics(methods)
    content: dict[str, Any] = {
        "methods": methods,
        "floors": {name: cells(seeds) for name, seeds in floors.items()},
        "absent": {name: _absent(seeds) for name, seeds in (*runs.items(), *floors.items())},
        "differences": differences(runs, reference, unmoved) | _pair_differences(pairs, reference),
        "best": {metric: best_method(runs, metric) for metric in _metrics(runs)} | dict.fromkeys(unmoved),
        "unmoved": unmoved,
        "equal_time": {"missing": equal_time},
    }
    for name, seeds in runs.items():
        if len(seeds) < 2:
            content["absent"][name] |= dict.fromkeys(PAIRS, "needs runs of two seeds: give --seeds 0,1,2")
    if isinstance(equal_time, EqualTime):
        table = {name: cells(seeds) for name, seeds in equal_time.runs.items()}
        rows = differences(equal_time.runs, reference, unmoved_metrics(table))
        content["equal_time"] = {"methods": table, "steps": dict(equal_time.steps), "differences": rows}
    return content


def cells(seeds: Mapping[int, RunResults]) -> Cells:
    """A method's or floor's cell for each metric."""
    return {metric: _cell(metric, seeds) for metric in _metrics({"": seeds})}


def stability(seeds: Mapping[int, RunResults], targets: TextTargets) -> PairValues:
    """Agreement of every two seeds of a method, by metric and pair of seeds."""
    found = PairValues({}, {})
    tables = {seed: _run_histograms(results) for seed, results in seeds.items()} if len(seeds) > 1 else {}
    for one, other in combinations(sorted(tables), 2):
        pair = f"{one}-{other}"
        codes = code_word_stability(tables[one], tables[other], targets.held_out_words)
        scores = [
            word_image_stability(seeds[one].artifacts[name], seeds[other].artifacts[name])
            for name in sorted(seeds[one].artifacts.keys() & seeds[other].artifacts.keys())
            if name.startswith("word_scores")
        ]
        found.values.setdefault("stability_codes", {})[pair] = codes.excess
        found.values.setdefault("stability_codes_null", {})[pair] = codes.dealt
        found.spreads[pair] = codes.dealt_spread
        if scores:
            found.values.setdefault("stability_words", {})[pair] = statistics.fmean(scores)
    return found


def differences(
    runs: Runs, reference: str | None, unmoved: Collection[str] = ()
) -> dict[str, dict[str, dict[str, Any]]]:
    """Each method minus the reference: {metric: {method: row}}, with p-values adjusted over the methods (Holm).

    A row has the fields of `Difference`, "minus", "by_seed", "p_holm" and "stands": adjusted p below .05, in a metric
    that is not `unmoved`.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    if reference is None or reference not in runs:
        return table
    for metric in _metrics(runs):
        rows = {
            name: row
            for name, seeds in runs.items()
            if name != reference and (row := _row(metric, seeds, runs[reference])) is not None
        }
        adjusted = holm({name: row["p"] for name, row in rows.items()})
        for name, p in adjusted.items():
            stands = p is not None and p < SIGNIFICANCE and metric not in unmoved
            rows[name] = {"minus": reference, **rows[name], "p_holm": p, "stands": stands}
        if rows:
            table[metric] = rows
    return table


def best_method(runs: Runs, metric: str) -> str | None:
    """The method whose mean is best and differs from that of every other method (adjusted p below .05); else None."""
    sign = {"higher": 1, "lower": -1}.get(card_of(metric).better)
    means = {name: mean for name, seeds in runs.items() if (mean := _mean(metric, seeds)) is not None}
    if sign is None or len(means) < 2:
        return None
    best, *others = sorted(means, key=lambda name: sign * means[name], reverse=True)
    p: dict[str, float | None] = {}
    for name in others:  # the nearest first: most searches end there
        row = _row(metric, runs[best], runs[name])
        if row is None or row["p"] is None or row["p"] >= SIGNIFICANCE or sign * row["mean"] <= 0:
            return None
        p[name] = row["p"]
    return best if all(value is not None and value < SIGNIFICANCE for value in holm(p).values()) else None


def unmoved_metrics(methods: Mapping[str, Cells]) -> dict[str, str]:
    """The text metrics in which every method's mean over seeds is within two spreads of chance, each with this reason.

    The spread is that of one value over permuted texts. It is not divided by the root of the number of seeds: all seeds
    see the one true order of the texts, so they miss chance together.
    """
    unmoved = {}
    for metric in dict.fromkeys(metric for table in methods.values() for metric in table):
        known = [table[metric] for table in methods.values() if metric in table]
        known = [cell for cell in known if cell["chance"] is not None]
        if known and all(abs(cell["mean"] - cell["chance"]) <= SPREADS * cell["chance_spread"] for cell in known):
            chance, spread = (statistics.fmean(cell[key] for cell in known) for key in ("chance", "chance_spread"))
            unmoved[metric] = (
                f"every method is within {SPREADS:g} standard deviations of chance ({chance:.4g} ± {spread:.2g}, from "
                "texts dealt at random)"
            )
    return unmoved


def most_informative_codes(
    results: RunResults, targets: TextTargets, *, codes: int = 6, words: int = 4
) -> list[dict[str, Any]]:
    """The codes that say most about words: {"code", "share" of all places in percent, "words": [(word, rise)]}.

    A word's rise is the growth of its share in a text, in percentage points, where the code occurs. Codes are ranked by
    use × greatest rise. All is counted on the held-out images.
    """
    _, shares = _run_histograms(results)
    table = word_table(shares, targets.held_out_words)
    use = shares.double().mean(0)
    rows = []
    for code in (table.amax(1) * use).argsort(descending=True, stable=True)[:codes].tolist():
        rises, places = table[code].topk(min(words, len(targets.top_words)))
        rising = [(targets.top_words[i], 100 * rise) for i, rise in zip(places.tolist(), rises.tolist(), strict=True)]
        rows.append({"code": code, "share": 100 * use[code].item(), "words": rising})
    return rows


def _run_histograms(results: RunResults) -> tuple[torch.Tensor, torch.Tensor]:
    """Code histograms of a run's training and held-out images."""
    size, indices = int(results.artifacts["codes"]), results.artifacts
    return code_histograms(indices["train_indices"], size), code_histograms(indices["held_out_indices"], size)


def _cell(metric: str, seeds: Mapping[int, RunResults]) -> dict[str, Any]:
    having = {seed: results for seed, results in sorted(seeds.items()) if metric in results.values}
    values = {str(seed): results.values[metric] for seed, results in having.items()}
    interval = mean_interval(_measured(metric, having.values()))
    chance = [results.chance[metric] for results in having.values() if metric in results.chance]
    mean, spread = (statistics.fmean(part) for part in zip(*chance, strict=True)) if chance else (None, None)
    around = {"low": interval.low, "high": interval.high, "over": interval.over}
    return {**_mean_and_spread(values), **around, "chance": mean, "chance_spread": spread}


def _pair_cells(pairs: PairValues) -> Cells:
    """Cells of metrics of two seeds; the chance of `stability_codes`, which is an excess over dealt texts, is 0."""
    unknown = dict.fromkeys(("low", "high", "over", "chance", "chance_spread"))
    table = {metric: {**_mean_and_spread(values), **unknown} for metric, values in pairs.values.items()}
    if pairs.spreads:
        table["stability_codes"] |= {"chance": 0.0, "chance_spread": statistics.fmean(pairs.spreads.values())}
    return table


def _row(metric: str, seeds: Mapping[int, RunResults], others: Mapping[int, RunResults]) -> dict[str, Any] | None:
    """The difference between two methods on the seeds for which both have the metric; None without such a seed."""
    common = sorted(seed for seed in seeds.keys() & others.keys() if metric in seeds[seed].values)
    common = [seed for seed in common if metric in others[seed].values]
    if not common:
        return None
    by_seed = {str(seed): seeds[seed].values[metric] - others[seed].values[metric] for seed in common}
    first, second = (_measured(metric, [side[seed] for seed in common]) for side in (seeds, others))
    if first.shape != second.shape or (first.ndim == 2 and not (first + second).isfinite().all(0).any()):
        first, second = (
            torch.tensor([side[seed].values[metric] for seed in common], dtype=torch.float64)
            for side in (seeds, others)
        )
    return {**difference(first, second)._asdict(), "by_seed": by_seed}


def _pair_differences(pairs: Mapping[str, PairValues], reference: str | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences of metrics of two seeds: their pairs share seeds, so there is neither interval nor test."""
    unknown = dict.fromkeys(("low", "high", "p", "df", "detectable", "over", "p_holm"))
    table: dict[str, dict[str, dict[str, Any]]] = {}
    if reference is None or reference not in pairs:
        return table
    for name, of_method in pairs.items():
        for metric, values in of_method.values.items():
            theirs = pairs[reference].values.get(metric, {})
            by_pair = {pair: value - theirs[pair] for pair, value in values.items() if pair in theirs}
            if name != reference and by_pair:
                mean = statistics.fmean(by_pair.values())
                row = {"minus": reference, "mean": mean, **unknown, "by_seed": by_pair, "stands": False}
                table.setdefault(metric, {})[name] = row
    return table


def _measured(metric: str, runs: Collection[RunResults]) -> torch.Tensor:
    """A metric's values per image, if their means are the metric's values (s n), else its values per seed (s).

    A median rank, for one, is not the mean of its images' ranks.
    """
    values = torch.tensor([results.values[metric] for results in runs], dtype=torch.float64)
    per_image = [results.per_image[metric].double() for results in runs if metric in results.per_image]
    if len(per_image) < len(runs) or len({len(of_run) for of_run in per_image}) != 1:
        return values
    table = torch.stack(per_image)
    kept = table.isfinite().all(0)
    same = kept.any() and torch.allclose(table.nanmean(1), values, rtol=1e-4, atol=1e-6)
    return table if same else values


def _metrics(runs: Runs) -> list[str]:
    """All metrics with a value, in the order in which they occur."""
    return list(dict.fromkeys(name for seeds in runs.values() for run in seeds.values() for name in run.values))


def _mean(metric: str, seeds: Mapping[int, RunResults]) -> float | None:
    values = [results.values[metric] for results in seeds.values() if metric in results.values]
    return statistics.fmean(values) if values else None


def _absent(seeds: Mapping[int, RunResults]) -> dict[str, str]:
    missing = {metric: why for results in seeds.values() for metric, why in results.missing.items()}
    return {metric: why for metric, why in missing.items() if all(metric not in run.values for run in seeds.values())}


def _mean_and_spread(values: dict[str, float]) -> dict[str, Any]:
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    return {"mean": statistics.fmean(values.values()), "spread": spread, "seeds": values}
