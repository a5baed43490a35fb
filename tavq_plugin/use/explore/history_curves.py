"""The curves of a run's training: its logged values, thinned to what a picture can show, in groups."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

POINTS = 200  # of a curve, at most
TITLES = {  # the start of a value's name → the title of its chart
    "pixel": "L1 of a batch",
    "perceptual": "Perceptual loss",
    "quantizer": "Codebook and commitment loss of the host",
    "level": "Codebook and commitment loss of the added levels",
    "alignment": "Alignment",
    "usage": "Codes used in a batch, %",
    "effective_rank": "Effective rank of the codes",
    "own_minus_other": "Transport cost to the own text minus another's",
    "gradient_ratio": "Alignment's gradient over the host's",
    "adversarial": "Adversarial loss",
    "discriminator": "Discriminator loss",
    "adaptive": "Adaptive weight of the adversarial loss",
    "skipped_gradients": "Backward passes without alignment so far",
    "seconds": "Seconds per step",
    "plugin_share": "Share of a step's time that the plug-in takes",
}
NO_HISTORY = "This run's folder holds no history: tavq demo keeps none. Runs of tavq train and compare have one."


def curves_of(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """{"missing", "charts"}: a chart has a title and lines, and a line a name, steps and values.

    A curve of many points becomes the means of as many intervals as a picture can show. Values that are not finite are
    left out and counted.

    >>> curves_of([{"step": 0, "usage1": 2.0, "usage2": 3.0}])["charts"][0]["lines"][1]
    {'name': 'usage2', 'steps': [0.0], 'values': [3.0], 'left_out': 0}
    """
    if not history:
        return {"missing": NO_HISTORY, "charts": []}
    names = list(dict.fromkeys(name for row in history for name in row if name != "step"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        rows = [(float(row["step"]), float(row[name])) for row in history if name in row]
        finite = [(step, value) for step, value in rows if math.isfinite(value)]
        line = {"name": name, **_thinned(finite), "left_out": len(rows) - len(finite)}
        groups.setdefault(_group(name), []).append(line)
    order = list(TITLES)
    placed = sorted(groups, key=lambda group: order.index(group) if group in order else len(order))
    return {"missing": "", "charts": [{"title": TITLES.get(name, name), "lines": groups[name]} for name in placed]}


def _group(name: str) -> str:
    """The chart of a value: that of the longest known name that it starts with, else its own without a number."""
    known = [start for start in TITLES if name == start or re.match(rf"{start}(?:\d|_)", name)]
    return max(known, key=len, default=re.sub(r"_?\d+$", "", name))


def _thinned(rows: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    """Means of at most `POINTS` intervals."""
    size = max(1, -(-len(rows) // POINTS))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    means = [tuple(sum(side) / len(part) for side in zip(*part, strict=True)) for part in parts]
    return {"steps": [round(step, 2) for step, _ in means], "values": [float(f"{value:.5g}") for _, value in means]}
