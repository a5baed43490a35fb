"""Runs of several methods and seeds as one table: mean and spread over seeds, and which differences would stand."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch

from tavq_plugin.evaluation.evaluate import Measured, Texts
from tavq_plugin.evaluation.metrics.bootstrap import paired_bootstrap
from tavq_plugin.evaluation.metrics.cards import HEADLINE, card_of
from tavq_plugin.evaluation.metrics.stability import code_word_stability, word_image_stability, word_table
from tavq_plugin.evaluation.metrics.words import histograms

AGAINST = ("vqgan", "tavq")  # whom differences are tested against, where they take part
Runs = Mapping[str, Mapping[int, Measured]]  # method → seed → figures


def summarise(runs: Runs, texts: Texts) -> dict[str, Any]:
    """{"methods": {name: {metric: {"mean", "spread", "seeds"}}}, "absent", "significance"}.

    "spread" is the standard deviation over seeds, None for one seed. A metric that a method lacks is in "absent",
    with the reason, never 0. Metrics of two seeds have pairs of seeds, "0-1", in "seeds".
    """
    content: dict[str, Any] = {"methods": {}, "absent": {}, "significance": significance(runs)}
    for name, seeds in runs.items():
        by_metric: dict[str, dict[str, float]] = {}
        for seed, measured in seeds.items():
            for metric, value in measured.values.items():
                by_metric.setdefault(metric, {})[str(seed)] = value
        by_metric |= stability(seeds, texts)
        content["methods"][name] = {metric: _over(values) for metric, values in by_metric.items()}
        absent = {metric: why for measured in seeds.values() for metric, why in measured.absent.items()}
        if len(seeds) < 2:
            why = "needs runs of two seeds: give --seeds 0,1,2"
            absent |= dict.fromkeys(("stability_codes", "stability_codes_null", "stability_words"), why)
        content["absent"][name] = {metric: why for metric, why in absent.items() if metric not in by_metric}
    return content


def stability(seeds: Mapping[int, Measured], texts: Texts) -> dict[str, dict[str, float]]:
    """Agreement of every two seeds of a method, by metric and pair."""
    found: dict[str, dict[str, float]] = {}
    tables = {seed: _histograms(measured) for seed, measured in seeds.items()}
    for one, other in combinations(sorted(seeds), 2):
        pair = f"{one}-{other}"
        codes = code_word_stability(tables[one], tables[other], texts.held_out_words)
        scores = [
            word_image_stability(seeds[one].kept[name], seeds[other].kept[name])
            for name in seeds[one].kept
            if name.startswith("word_scores")
        ]
        found.setdefault("stability_codes", {})[pair] = codes.matched
        found.setdefault("stability_codes_null", {})[pair] = codes.null
        found.setdefault("stability_words", {})[pair] = statistics.fmean(scores)
    return found


def significance(runs: Runs) -> dict[str, Any]:
    """{metric: {method: {"vqgan": {"mean", "low", "high", "p", "p_images"}, …}}} of the headline's per-image metrics.

    Of methods with the same seeds; p over images and seeds, p_images over images alone.
    """
    found: dict[str, Any] = {}
    for metric in HEADLINE:
        for name, seeds in runs.items():
            for rival in AGAINST:
                other = runs.get(rival)
                if rival == name or not other or sorted(other) != sorted(seeds):
                    continue
                sides = [[table[seed].each.get(metric) for seed in sorted(table)] for table in (seeds, other)]
                if not seeds or any(values is None for side in sides for values in side):
                    continue
                first, second = (torch.stack(side) for side in sides)
                whole = paired_bootstrap(first, second)
                images = paired_bootstrap(first, second, over_seeds=False)
                row = {**whole._asdict(), "p_images": images.p}
                found.setdefault(metric, {}).setdefault(name, {})[rival] = row
    return found


def best(content: Mapping[str, Any], metric: str) -> set[str]:
    """The methods of the best mean, as it is shown; none where the metric has no direction or one method alone."""
    card = card_of(metric)
    means = {
        name: round(table[metric]["mean"], card.digits) for name, table in content["methods"].items() if metric in table
    }
    if card.better not in ("higher", "lower") or len(means) < 2:
        return set()
    first = (max if card.better == "higher" else min)(means.values())
    return {name for name, mean in means.items() if mean == first}


def told_by_codes(measured: Measured, texts: Texts, *, codes: int = 6, words: int = 4) -> list[dict[str, Any]]:
    """What the most telling codes tell: {"code", "share" of all places in percent, "words": [(word, points above)]}.

    The most telling are those of greatest (use × greatest word's rise), on the held-out images.
    """
    _, shares = _histograms(measured)
    table = word_table(shares, texts.held_out_words)
    use = shares.double().mean(0)
    told = []
    for code in (table.amax(1) * use).argsort(descending=True, stable=True)[:codes].tolist():
        rise, which = table[code].topk(min(words, len(texts.words)))
        said = [(texts.words[w], 100 * r) for w, r in zip(which.tolist(), rise.tolist(), strict=True)]
        told.append({"code": code, "share": 100 * use[code].item(), "words": said})
    return told


def _histograms(measured: Measured) -> tuple[torch.Tensor, torch.Tensor]:
    size = int(measured.kept["codes"])
    return tuple(histograms(measured.kept[f"{side}_indices"], size) for side in ("train", "held_out"))


def _over(values: dict[str, float]) -> dict[str, Any]:
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    return {"mean": statistics.fmean(values.values()), "spread": spread, "seeds": values}
