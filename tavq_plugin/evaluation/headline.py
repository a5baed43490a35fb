"""One plain sentence on a comparison, for a reader who reads no table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tavq_plugin.evaluation.floors.features import CEILINGS
from tavq_plugin.evaluation.metrics.statistics import SEEDS_TO_TEST


@dataclass(frozen=True)
class _Quantity:
    """How a metric is written in a sentence."""

    metric: str
    title: str
    unit: str  # of a value
    step: str  # of a difference
    digits: int

    def value(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.{self.digits}f} {self.unit}"

    def number(self, value: float) -> str:
        """A value without its unit, with a true minus."""
        text = f"{value:.{self.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


TEXT = _Quantity("grid_r10_3", "R@10 of the stored codes", "%", "points", 1)
PIXELS = _Quantity("psnr", "PSNR", "dB", "dB", 2)


def headline_sentence(content: Mapping[str, Any]) -> str:
    """At most two sentences on the content of compare.json: what differs, by how much, and whether this run can tell.

    They state the primary text metric and PSNR of one method: tavq, or else the one that differs most from the
    reference. They count the other methods whose differences stand.

    >>> headline_sentence({"methods": {}, "failed": {"vqgan, seed 0": "the loss is nan"}})
    'Every run failed, so there is nothing to compare: vqgan, seed 0: the loss is nan.'
    """
    methods, failed = content.get("methods", {}), content.get("failed", {})
    if not any(methods.values()):
        whys = "; ".join(f"{name}: {why}" for name, why in failed.items()) or "no run has finished"
        return f"Every run failed, so there is nothing to compare: {whys}."
    rows = content.get("differences", {})
    method = _method_to_name(rows)
    named = method or next(iter(methods))
    parts = [_clause(content, quantity, named) for quantity in (TEXT, PIXELS)]
    first = f"{_place(content)}, {'; '.join(parts)}"
    if method is None:
        why = "no second method was measured" if len(methods) < 2 else "no two methods share a metric and a seed"
        first += f"; {why}, so there is no difference to state"
    rest = [part for part in (_floor(content, named), _others(rows, method), _failures(failed)) if part]
    return f"{first}." if not rest else f"{first}. {_capital('; '.join(rest))}."


def _method_to_name(rows: Mapping[str, Any]) -> str | None:
    """tavq if it is compared with the reference, else the method whose difference is largest."""
    compared: Mapping[str, Any] = next(
        (rows[quantity.metric] for quantity in (TEXT, PIXELS) if rows.get(quantity.metric)), {}
    )
    if "tavq" in compared or not compared:
        return "tavq" if compared else None
    return max(compared, key=lambda name: abs(compared[name]["mean"]))


def _place(content: Mapping[str, Any]) -> str:
    protocol = content.get("protocol", {})
    count = protocol.get("n_eval")
    split = f"{protocol['split']} split" if protocol.get("split") else "held-out split"
    images = f"the {count:,} images of the {split}" if count else f"the {split}"
    seeds = len(protocol.get("seeds", ()))
    return f"On {images}" + (f", with {seeds} seed{'s' * (seeds > 1)}" if seeds else "")


def _clause(content: Mapping[str, Any], quantity: _Quantity, method: str) -> str:
    """What is known of one metric: a difference with its verdict, else the method's value, else why there is none."""
    cell = content["methods"][method].get(quantity.metric)
    if cell is None:
        why = content.get("absent", {}).get(method, {}).get(quantity.metric, "no run has a value")
        return f"{quantity.title} was not measured ({why})"
    row = content.get("differences", {}).get(quantity.metric, {}).get(method)
    chance = None if cell.get("chance") is None else f"chance: {quantity.value(cell['chance'])}"
    if row is None:
        chance = f" ({chance})" if chance else ""
        return f"{method}'s {quantity.title} is {quantity.value(cell['mean'])}{chance}"
    other = content["methods"][row["minus"]][quantity.metric]["mean"]
    values = f"{quantity.number(cell['mean'])} against {quantity.value(other)}"
    values += f"; {chance}" if chance else ""
    size = quantity.number(abs(row["mean"]))
    if float(size) == 0:
        fact = f"{method}'s {quantity.title} is the same as {row['minus']}'s to the digits shown ({values}"
    else:
        side = "above" if row["mean"] > 0 else "below"
        fact = f"{method}'s {quantity.title} is {size} {quantity.step} {side} {row['minus']}'s ({values}"
    if row["low"] is not None:
        over = "" if row["over"] == "seeds and images" else f" over {row['over']} alone"
        fact += f"; 95 % interval of the difference{over}: {quantity.number(row['low'])} to "
        fact += quantity.number(row["high"])
    return f"{fact}), {_verdict(content, quantity, row)}"


def _verdict(content: Mapping[str, Any], quantity: _Quantity, row: Mapping[str, Any]) -> str:
    """Whether a difference stands, or what this run could have told at best."""
    if quantity.metric in content.get("unmoved", {}):
        return "and no method is above chance, so this says nothing about the text"
    if row["stands"]:
        p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
        return f"and this stands ({p})"
    seeds = len(row["by_seed"])
    seen = (
        "how large the noise is cannot be known"
        if row["detectable"] is None
        else f"only true differences of {quantity.number(row['detectable'])} {quantity.step} or more are likely to show"
    )
    if seeds >= SEEDS_TO_TEST:
        return f"which does not stand: with {seeds} seeds {seen}"
    if seeds == 1:
        return f"and one seed cannot show whether this holds with other seeds: on other images with this seed, {seen}"
    return f"and {seeds} seeds are too few to test this: {seen}"


def _floor(content: Mapping[str, Any], method: str) -> str | None:
    """What the best floor reaches in the text metric; a frozen network is a ceiling, not a floor."""
    values = {
        name: table[TEXT.metric]["mean"]
        for name, table in content.get("floors", {}).items()
        if TEXT.metric in table and name not in CEILINGS
    }
    mine = content["methods"][method].get(TEXT.metric)
    if not values or mine is None:
        return None
    best = max(values, key=values.__getitem__)
    shown, own = TEXT.number(values[best]), TEXT.number(mine["mean"])
    title = content.get("protocol", {}).get("floors", {}).get(best, best)
    side = "as much as" if shown == own else "more than" if values[best] > mine["mean"] else "less than"
    return f"the best floor, features that nobody trained ({title}), reaches {shown} % R@10, {side} {method}"


def _others(rows: Mapping[str, Any], method: str | None) -> str | None:
    """How many further methods differ from the reference in the text metric."""
    metric = TEXT if rows.get(TEXT.metric) else PIXELS
    others = [row for name, row in rows.get(metric.metric, {}).items() if name != method]
    if not others:
        return None
    standing, what = sum(row["stands"] for row in others), f"in {metric.title}"
    if len(others) == 1:
        return f"the difference of the other method {what} {'stands' if standing else 'does not stand'}"
    return f"{standing or 'none'} of the {len(others)} other methods' differences {what} stand{'s' * (standing < 2)}"


def _failures(failed: Mapping[str, str]) -> str | None:
    if not failed:
        return None
    return f"{len(failed)} run{'s' * (len(failed) > 1)} failed"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
