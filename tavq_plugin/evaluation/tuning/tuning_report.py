"""The trials of `tavq tune` as Markdown: what was tried, what was chosen, and what the choice cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def tuning_report(content: Mapping[str, Any]) -> str:
    """A table of all trials with the choice of each method in bold, and notes below."""
    return "\n".join(_lines(content)) + "\n"


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    protocol = content["protocol"]
    yield f"Rule: {protocol['rule']}."
    yield ""
    yield f"{protocol['n_train']} training images, {protocol['n_eval']} of the tune split, seed {protocol['seed']}."
    yield ""
    yield "| method | strength | steps | word mAP, level 3, grid, % | PSNR, dB | |"
    yield "|---|---:|---:|---:|---:|---|"
    for steps, trial in content["reference"].items():
        yield f"| vqgan | | {steps} | {trial['text']:.2f} | {trial['pixels']:.2f} | reference |"
    for method, entry in content["methods"].items():
        for steps, trials in entry["trials"].items():
            yield from (_row(method, entry, steps, trial, content) for trial in trials)
    yield ""
    for method, entry in content["methods"].items():
        yield f"- {method}: strength {entry['strength']:g}{_remarks(entry)}"
    for name, why in content["failed"].items():
        yield f"- broke: {name}: {why}"
    yield "- One seed: the choice does not say that another strength is worse, only that this one was not."


def _row(
    method: str, entry: Mapping[str, Any], steps: str, trial: Mapping[str, float], content: Mapping[str, Any]
) -> str:
    strength = trial["strength"]
    last = steps == list(content["reference"])[-1]
    bold = "**" if last and strength == entry["strength"] else ""
    behind = content["reference"][steps]["pixels"] - trial["pixels"] > content["protocol"]["margin"]
    note = "chosen" if bold else "beyond the margin" if behind else ""
    return f"| {method} | {bold}{strength:g}{bold} | {steps} | {trial['text']:.2f} | {trial['pixels']:.2f} | {note} |"


def _remarks(entry: Mapping[str, Any]) -> str:
    remarks = "" if entry["within_margin"] else ", though every strength costs more PSNR than the margin"
    remarks += ", at the edge of what was tried: a further one may be better" if entry["at_edge"] else ""
    front = ", ".join(f"{strength:g}" for strength in entry["front"])
    return f"{remarks}; Pareto front of the first trials: {front}"
