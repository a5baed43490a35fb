"""One sentence that says what the numbers of `tavq demo` show, or that the run is too short to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tavq_plugin.evaluation.metrics.statistics import difference

CONTROLS = {"lambda-0": "without alignment", "shuffled": "with shuffled texts"}  # run → how the sentence calls it


def demo_verdict(content: Mapping[str, Any], per_image: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """The sentence, and the differences that it rests on: tavq's less each control's, over the held-out images.

    Args:
        content: What demo.json holds: the figures of the runs and of the floors, and the protocol.
        per_image: For each run, its values of `word_map`, `word_map_pooled` and `psnr` for each held-out image.
    """
    differences = {
        metric: {
            control: difference(_values(per_image["tavq"][metric]), _values(per_image[control][metric]))._asdict()
            for control in CONTROLS
        }
        for metric in ("word_map", "word_map_pooled", "psnr")
        if all(per_image[run].get(metric) for run in ("tavq", *CONTROLS))
    }
    return {"sentence": _sentence(content, differences), "differences": differences, "spread": "95 % over images"}


def _sentence(content: Mapping[str, Any], differences: Mapping[str, Mapping[str, Any]]) -> str:
    runs, protocol = content["runs"], content["protocol"]
    where = f"{protocol['n_eval']:,} held-out images"
    psnr = f"PSNR is {_against(differences['psnr'], runs, 'psnr', 'dB', 2)}"
    if "word_map" not in differences:
        return f"The texts give no word mAP, so only pixels are compared on {where}: {psnr} (one seed)."
    words = {name: {"word_map": run["stored"]["grid_word_map"]} for name, run in runs.items()}
    floors = {name: floor["stored"]["grid_word_map"] for name, floor in content["floors"].items()}
    above = [name for name, value in floors.items() if value is not None and value > words["tavq"]["word_map"]]
    beside = " and ".join(f"{value:.1f} for {name}" for name, value in floors.items() if value is not None)
    chance = runs["tavq"]["chance"]["grid_word_map"]
    parts = [
        f"{_finding(differences, protocol['steps'])}: on {where}, word mAP of the stored codes is "
        f"{_against(differences['word_map'], words, 'word_map', '%', 2)}, beside {chance:.1f} by chance and the floors "
        f"{beside}{f' ({above[0]} says more than tavq)' if above else ''}",
        psnr,
    ]
    if "word_map_pooled" in differences:
        found = " and ".join(f"({_difference(differences['word_map_pooled'][name], 2)})" for name in CONTROLS)
        parts.insert(
            1,
            "by a probe on pooled codes, which varies far more from seed to seed and decides nothing here (docs/demo.md"
            f"), the two differences are {found}",
        )
    mass = runs["tavq"].get("word_mass")
    if mass is not None:
        low, high = mass["times_interval"]
        other = runs["shuffled"]["word_mass"]["times"]
        parts.append(
            f"a word that names one object sends {mass['inside']:.0f} % of its mass into that object's box, "
            f"{mass['times']:.2f} times ({low:.2f} to {high:.2f}) the box's {mass['area']:.0f} % of the area, where "
            f"shuffled texts give {other:.2f} times and chance 1"
        )
    return f"{'; '.join(parts)} (95 % intervals over images, one seed)."


def _finding(differences: Mapping[str, Mapping[str, Any]], steps: int) -> str:
    """What the differences of word mAP show: a difference counts if it is beyond the spread over images.

    The probe on the code at every place decides. Between two seeds of one training, the probe on pooled codes differs
    by far more than its spread over images (docs/demo.md), so that its differences may be chance.
    """
    signs = {control: _sign(differences["word_map"][control]) for control in CONTROLS}
    codes = f"After {steps} steps, the stored codes of tavq"
    if set(signs.values()) == {1}:
        return f"{codes} say more about the words of a text than those trained without alignment or with shuffled texts"
    if set(signs.values()) == {-1}:
        return f"{codes} say less about the words of a text than those trained without alignment or with shuffled texts"
    if signs == {"lambda-0": 1, "shuffled": 0}:
        return f"{codes} say more than without alignment, but this run cannot tell whether the texts are the reason"
    told = [f"{'more' if sign > 0 else 'less'} than {CONTROLS[name]}" for name, sign in signs.items() if sign]
    if told:
        return f"{codes} say {' and '.join(told)}; more cannot be told from so short a run"
    return f"This run of {steps} steps is too short to tell whether alignment makes the stored codes say more"


def _against(
    differences: Mapping[str, Mapping[str, Any]], runs: Mapping[str, Any], metric: str, unit: str, digits: int
) -> str:
    """tavq's value, then each control's with its difference and interval."""
    parts = []
    for control, name in CONTROLS.items():
        parts.append(f"{runs[control][metric]:.{digits}f} {name} ({_difference(differences[control], digits)})")
    return f"{runs['tavq'][metric]:.{digits}f} {unit} against {' and '.join(parts)}"


def _difference(found: Mapping[str, Any], digits: int) -> str:
    """A difference and its interval, such as "+0.34, +0.25 to +0.43"."""
    spread = "" if found["low"] is None else f", {found['low']:+.{digits}f} to {found['high']:+.{digits}f}"
    return f"{found['mean']:+.{digits}f}{spread}"


def _sign(found: Mapping[str, Any]) -> int:
    """1 or -1 if the whole interval lies on that side of 0, else 0."""
    return 0 if found["low"] is None else 1 if found["low"] > 0 else -1 if found["high"] < 0 else 0


def _values(values: Sequence[float | None]) -> torch.Tensor:
    """One seed's values of all images; 1 n, NaN where an image has none."""
    return torch.tensor([[torch.nan if value is None else value for value in values]], dtype=torch.float64)
