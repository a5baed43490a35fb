"""The tables that `tavq demo` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

LEVELS = ("level1", "level2", "level3")
STORED_METRICS = {  # metric, without its level → its label
    "grid_r10": "R@10, %",
    "grid_median_rank": "median rank",
    "grid_word_map": "word mAP, %",
    "image_text_r10": "R@10, pooled codes, %",
    "word_map": "word mAP, pooled codes, %",
}
"""The probes' scores of level 3, the codes that a user stores."""
MASS_ROWS = {  # figure of `word_mass` → its label
    "inside": "word mass in its object, %",
    "area": "  the object's area, %",
    "times": "  mass / area (chance 1)",
}


def tables(content: dict[str, Any]) -> Group:
    """A sentence on what one seed can tell, level 3 beside floors and chance, then all levels and the training."""
    protocol = content["protocol"]
    split = protocol["split"]
    sentence = (
        f"One seed ({protocol['seed']}), measured on the {protocol['n_eval']} images of the {split} split. One "
        "seed cannot show small differences: run the demo again with --seed 1, 2, … and compare."
    )
    return Group(sentence, "", _stored_codes(content), "", _all_levels(content))


def _stored_codes(content: dict[str, Any]) -> Table:
    """Level 3, which the decoder reads and a user stores: the runs, two floors and chance."""
    protocol, runs, floors = content["protocol"], content["runs"], content["floors"]
    shown = _table(
        f"Level 3, the codes that are stored ({protocol['split']} split)\n{protocol['data']}, "
        f"{protocol['resolution']} px, {protocol['steps']} steps, {protocol['n_train']} training images",
        [*runs, *(name.replace(" ", "\n", 1) for name in floors), "chance"],
    )
    for metric, label in STORED_METRICS.items():
        values = [side["stored"].get(metric) for side in (*runs.values(), *floors.values())]
        chances = [run["chance"].get(metric) for run in runs.values()]
        shown.add_row(label, *(_number(value, 1) for value in values), _number(_mean(chances), 1))
    for metric, label, digits in (
        ("psnr", "PSNR, dB", 2),
        ("psnr_standard_error", "  standard error", 2),
        ("bits", "bits per image", 0),
        ("usage", "codebook usage, %", 1),
        ("perplexity", "perplexity", 0),
    ):
        values = [side[metric] for side in (*runs.values(), *floors.values())]
        shown.add_row(label, *(_number(value, digits) for value in values), "")
    shown.caption = (
        "R@10, median rank (lower is better) and word mAP come from a probe that reads the code at every place, and "
        "those of pooled codes from a probe that reads their mean. The columns 'mean colour' and 'patch k-means' are "
        "floors, features that nobody trained: the mean colour, and k-means of pixel patches with as many codes "
        "and places as level 3. Chance: the texts are dealt at random."
    )
    return shown


def _all_levels(content: dict[str, Any]) -> Table:
    """Every level of the runs, their training, and last what their own heads retrieve."""
    protocol, runs = content["protocol"], content["runs"]
    shown = _table(f"All levels, fine → coarse ({protocol['split']} split)", list(runs))

    def row(label: str, cell: Callable[[dict[str, Any]], str]) -> None:
        shown.add_row(label, *map(cell, runs.values()))

    def by_level(recall: dict[str, dict[str, float]] | None, k: str) -> list[float | None]:
        return [recall[level][k] if recall else None for level in LEVELS]

    row("R@10, pooled codes, %", lambda run: _each(by_level(run["retrieval_fitted"], "r10")))
    row("word mAP, pooled codes, %", lambda run: _each([run["word_map"][level] for level in LEVELS]))
    row("plan entropy / max", lambda run: _each(run["plan_entropy"], digits=2))
    for key, label in MASS_ROWS.items():
        if any(run["word_mass"] for run in runs.values()):
            cells = [_number(run["word_mass"] and run["word_mass"][key], 1) for run in runs.values()]
            shown.add_row(label, *cells)
    row("seconds per step", lambda run: f"{run['seconds_per_step']:.3f}")
    row("plug-in, % of step", lambda run: f"{100 * run['plugin_share']:.1f}")
    for k in ("r10", "r50"):
        cells = [_each(by_level(run["retrieval"], k)) for run in runs.values()]
        shown.add_row(f"own head R@{k[1:]}, % (chance {protocol['chance'][k]:.0f})", *cells)
    shown.caption = (
        "The decoder reads level 3 alone. Word mass: of words that name one object, the share of level 1's transport "
        "inside that object's box. Own heads were trained with the loss, so they flatter their own run: they "
        "show that the loss was learned, but do not compare runs."
    )
    return shown


def _table(title: str, columns: Sequence[str]) -> Table:
    shown = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("", no_wrap=True)
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    return shown


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _each(values: Sequence[float | None], *, digits: int = 1) -> str:
    return "–" if None in values else " ".join(_number(value, digits) for value in values)
