"""Results of several methods and seeds in one table: mean, spread over seeds, and significance of differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch

from tavq_plugin.evaluation.metrics.bootstrap import paired_bootstrap
from tavq_plugin.evaluation.metrics.cards import HEADLINE, card_of
from tavq_plugin.evaluation.metrics.stability import code_word_stability, word_image_stability, word_table
from tavq_plugin.evaluation.metrics.words import code_histograms
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.text_targets import TextTargets

REFERENCES = ("vqgan", "tavq")  # methods that the others are tested against, if they take part
Runs = Mapping[str, Mapping[int, RunResults]]  # method → seed → results


def summarise(runs: Runs, targets: TextTargets) -> dict[str, Any]:
    """Content of compare.json: {"methods": {name: {metric: {"mean", "spread", "seeds"}}}, "absent", "significance"}.

    "spread" is the standard deviation over seeds, None for one seed. "seeds" has one value per seed or, for metrics
    that compare two seeds, per pair such as "0-1". A metric without a value is in "absent" with the reason.
    """
    content: dict[str, Any] = {"methods": {}, "absent": {}, "significance": significance(runs)}
    for name, seeds in runs.items():
        by_metric: dict[str, dict[str, float]] = {}
        for seed, results in seeds.items():
            for metric, value in results.values.items():
                by_metric.setdefault(metric, {})[str(seed)] = value
        by_metric |= stability(seeds, targets)
        content["methods"][name] = {metric: _mean_and_spread(values) for metric, values in by_metric.items()}
        absent = {metric: why for results in seeds.values() for metric, why in results.missing.items()}
        if len(seeds) < 2:
            why = "needs runs of two seeds: give --seeds 0,1,2"
            absent |= dict.fromkeys(("stability_codes", "stability_codes_null", "stability_words"), why)
        content["absent"][name] = {metric: why for metric, why in absent.items() if metric not in by_metric}
    return content


def stability(seeds: Mapping[int, RunResults], targets: TextTargets) -> dict[str, dict[str, float]]:
    """Agreement of every two seeds of a method, by metric and pair of seeds."""
    by_metric: dict[str, dict[str, float]] = {}
    tables = {seed: _run_histograms(results) for seed, results in seeds.items()}
    for one, other in combinations(sorted(seeds), 2):
        pair = f"{one}-{other}"
        codes = code_word_stability(tables[one], tables[other], targets.held_out_words)
        scores = [
            word_image_stability(seeds[one].artifacts[name], seeds[other].artifacts[name])
            for name in seeds[one].artifacts
            if name.startswith("word_scores")
        ]
        by_metric.setdefault("stability_codes", {})[pair] = codes.excess
        by_metric.setdefault("stability_codes_null", {})[pair] = codes.dealt
        by_metric.setdefault("stability_words", {})[pair] = statistics.fmean(scores)
    return by_metric


def significance(runs: Runs) -> dict[str, Any]:
    """Differences to the reference methods: {metric: {method: {"vqgan": {"mean", "low", "high", "p", "p_images"}}}}.

    Tested are the headline's metrics with one value per image, between methods with the same seeds. p is over images
    and seeds, p_images over images alone.
    """
    by_metric: dict[str, Any] = {}
    for metric in HEADLINE:
        for name, seeds in runs.items():
            for reference in REFERENCES:
                other = runs.get(reference)
                if reference == name or not other or sorted(other) != sorted(seeds):
                    continue
                sides = [[table[seed].per_image for seed in sorted(table)] for table in (seeds, other)]
                if not seeds or any(metric not in per_image for side in sides for per_image in side):
                    continue
                first, second = (torch.stack([per_image[metric] for per_image in side]) for side in sides)
                over_images = paired_bootstrap(first, second, over_seeds=False)
                row = {**paired_bootstrap(first, second)._asdict(), "p_images": over_images.p}
                by_metric.setdefault(metric, {}).setdefault(name, {})[reference] = row
    return by_metric


def best_methods(content: Mapping[str, Any], metric: str) -> set[str]:
    """The methods whose printed mean is best; none if the metric has no direction or only one method has it."""
    card = card_of(metric)
    means = {
        name: round(table[metric]["mean"], card.digits) for name, table in content["methods"].items() if metric in table
    }
    if card.better not in ("higher", "lower") or len(means) < 2:
        return set()
    best = (max if card.better == "higher" else min)(means.values())
    return {name for name, mean in means.items() if mean == best}


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


def _mean_and_spread(values: dict[str, float]) -> dict[str, Any]:
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    return {"mean": statistics.fmean(values.values()), "spread": spread, "seeds": values}
