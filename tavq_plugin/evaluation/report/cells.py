"""Values and column heads of a comparison's tables, as they are shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tavq_plugin.evaluation.metrics.cards import card_of

EMPTY = "–"  # shown where there is no value
PLAIN_UNITS = ("–", "codes", "tokens", "bits", "rank", "0–1", "−1–1", "−2–2")  # units that a head leaves out


@dataclass(frozen=True)
class Cell:
    """One value as it is shown."""

    text: str = EMPTY
    chance: str = ""  # the metric's value when texts are dealt at random
    best: bool = False
    mark: str = ""  # ▲ or ▼
    why: str = ""  # why there is no value
    over: str = ""  # what the interval behind ± is over


@dataclass(frozen=True)
class Column:
    """The head of a column; `metric` is empty for what is no metric."""

    heading: str
    unit: str = ""
    arrow: str = ""
    metric: str = ""

    @property
    def text(self) -> str:
        """The heading with its unit and direction.

        >>> Column("PSNR", "dB", "↑").text
        'PSNR, dB ↑'
        """
        return f"{self.heading}{', ' if self.unit else ''}{self.unit} {self.arrow}".rstrip()


def shown_number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number with its digits and a true minus; a dash for None and for what is not finite.

    >>> shown_number(-0.004, 2), shown_number(-1.25, 2, sign=True), shown_number(float("nan"), 2)
    ('0.00', '−1.25', '–')
    """
    if value is None or not math.isfinite(value):
        return EMPTY
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return (text.lstrip("+-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def shown_p(value: float | None) -> str:
    """A p-value; `< .001` below that.

    >>> shown_p(0.0004), shown_p(0.25), shown_p(None)
    ('< .001', '0.250', '–')
    """
    return "< .001" if value is not None and 0 <= value < 0.001 else shown_number(value, 3)


def base_of(metric: str) -> str:
    """A metric's name without its level.

    >>> base_of("word_map_2"), base_of("grid_r10"), base_of("psnr")
    ('word_map', 'grid_r10', 'psnr')
    """
    return re.sub(r"_[123]$", "", metric)


def column_of(metric: str, *, level: bool = False) -> Column:
    """The head of a metric's column; with `level`, its level is named as L1, L2 or L3.

    >>> column_of("grid_r10_3").text, column_of("grid_r10_3", level=True).heading
    ('grid R@10, % ↑', 'grid R@10, L3')
    """
    card = card_of(metric)
    heading = f"{card.head}, L{card.level}" if level and card.level else card.head
    unit = "" if card.unit in PLAIN_UNITS else card.unit
    return Column(heading, unit, {"higher": "↑", "lower": "↓"}.get(card.better, ""), metric)


def value_cell(
    values: Mapping[str, Any] | None, metric: str, *, mark: str = "", best: bool = False, why: str = ""
) -> Cell:
    """A cell of compare.json as it is shown: the mean, and half of its 95 % interval if it has one."""
    if values is None or shown_number(values["mean"], 0) == EMPTY:
        return Cell(why=why or "no run has a value")
    digits, unit = card_of(metric).digits, card_of(metric).unit
    text, over = shown_number(values["mean"], digits), ""
    low, high = values.get("low"), values.get("high")
    constant = unit in ("tokens", "bits") and low == high  # every seed stores as many
    if low is not None and high is not None and math.isfinite(high - low) and not constant:
        text += f" ± {shown_number((high - low) / 2, digits)}"
        over = values.get("over") or ""
    chance = shown_number(values.get("chance"), digits)
    return Cell(text, "" if chance == EMPTY else chance, best, mark, over=over)


def mark_of(difference: Mapping[str, Any] | None, metric: str) -> str:
    """▲ if a method is better than the reference, ▼ if it is worse, and nothing if the difference does not stand."""
    better = card_of(metric).better
    if difference is None or not difference["stands"] or not difference["mean"] or better not in ("higher", "lower"):
        return ""
    return "▲" if (difference["mean"] > 0) == (better == "higher") else "▼"
