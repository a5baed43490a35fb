"""A comparison's metrics as table cells and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tavq_plugin.evaluation.aggregate import best_methods
from tavq_plugin.evaluation.metrics.cards import CARDS, HEADLINE, Card, card_of

MARKS = ("▲", "▼")
LEGEND = (
    "Mean ± standard deviation over seeds. ▲ is better and ▼ worse than the reference, which is vqgan or else the first "
    "method; the best mean is bold where it differs from every other (three seeds or more, p < .05 after Holm)"
)


@dataclass(frozen=True)
class Cell:
    """One value as it is shown."""

    method: str
    text: str  # "not computed" if there is no value
    best: bool = False
    marks: str = ""
    why: str = ""  # why there is no value


@dataclass(frozen=True)
class Line:
    """One metric of all methods."""

    metric: str
    card: Card
    cells: list[Cell]


def lines_of(content: Mapping[str, Any], metrics: Sequence[str]) -> list[Line]:
    """One line per metric that any method has, or lacks for a stated reason; methods in the content's order."""
    known = _known_metrics(content)
    return [
        Line(metric, card_of(metric), [_cell(content, metric, name) for name in content["methods"]])
        for metric in metrics
        if metric in known
    ]


def every_metric(content: Mapping[str, Any]) -> list[str]:
    """All metrics in the order of the cards; the levels of a metric follow their mean."""
    order = {name: i for i, name in enumerate(CARDS)}
    return sorted(_known_metrics(content), key=lambda name: (order.get(name, order.get(name[:-2], len(order))), name))


def markdown(content: Mapping[str, Any]) -> str:
    """The headline metrics as a Markdown table, after a sentence on the protocol."""
    protocol = content["protocol"]
    recipe = protocol["recipe"]
    lines = lines_of(content, HEADLINE)
    rows = [["", *content["methods"]], ["---", *["---:"] * len(content["methods"])]]
    for line in lines:
        arrow = {"higher": " ↑", "lower": " ↓"}.get(line.card.better, "")
        unit = f", {line.card.unit}" if line.card.unit not in ("–", "codes", "0–1", "−1–1") else ""
        rows.append([f"{line.card.title}{unit}{arrow}", *map(_plain, line.cells)])
    absent = sorted({f"{line.card.title}: {cell.why}" for line in lines for cell in line.cells if cell.why})
    parts = [
        f"{protocol['data']}, {recipe['resolution']} px, {recipe['steps']} steps of {recipe['batch_size']} images; "
        f"{protocol['n_train']} images train, {protocol['n_eval']} are held out; "
        f"seeds {', '.join(map(str, protocol['seeds']))}. {LEGEND}.",
        "\n".join("| " + " | ".join(row) + " |" for row in rows),
        "\n".join(f"- not computed: {why}" for why in absent),
        "\n".join(f"- broke: {name}: {why}" for name, why in content.get("failed", {}).items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _known_metrics(content: Mapping[str, Any]) -> set[str]:
    return {name for table in (*content["methods"].values(), *content["absent"].values()) for name in table}


def _cell(content: Mapping[str, Any], metric: str, name: str) -> Cell:
    value = content["methods"][name].get(metric)
    if value is None:
        why = content["absent"].get(name, {}).get(metric, "no run of this method has it")
        return Cell(name, "not computed", why=why)
    digits = card_of(metric).digits
    text = f"{value['mean']:.{digits}f}"
    if value["spread"] is not None:
        text += f" ± {value['spread']:.{digits}f}"
    lower = card_of(metric).better == "lower"
    marks = ""
    difference = content["differences"].get(metric, {}).get(name)
    if difference is not None and difference["stands"]:
        marks = MARKS[(difference["mean"] > 0) == lower]
    return Cell(name, text, name in best_methods(content, metric), marks)


def _plain(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} {cell.marks}".rstrip()
