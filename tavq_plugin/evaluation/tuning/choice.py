"""Which strength of a method is best, by a rule that is stated before the trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TEXT, PIXELS = "grid_word_map_3", "psnr"  # what the rule reads: word mAP of the stored codes by the grid probe, and dB


@dataclass(frozen=True)
class Trial:
    """One run of a method at one strength, as the rule sees it."""

    strength: float
    text: float  #: word mAP of level 3 by the grid probe, %
    pixels: float  #: PSNR, dB


def ordered(trials: Sequence[Trial], *, reference: float, margin: float) -> list[Trial]:
    """The trials, best first: those whose PSNR is at most `margin` below the reference's, by word mAP; then the others.

    The others are ordered by PSNR: where every strength costs more than the margin, the one that costs least is best.

    >>> weak, strong, ruinous = Trial(1, 20.0, 25.0), Trial(4, 21.0, 24.95), Trial(16, 23.0, 22.0)
    >>> [trial.strength for trial in ordered([weak, strong, ruinous], reference=25.0, margin=0.1)]
    [4, 1, 16]
    """
    allowed = [trial for trial in trials if within(trial, reference=reference, margin=margin)]
    others = [trial for trial in trials if trial not in allowed]
    return sorted(allowed, key=lambda trial: -trial.text) + sorted(others, key=lambda trial: -trial.pixels)


def within(trial: Trial, *, reference: float, margin: float) -> bool:
    """Whether a trial's PSNR is at most `margin` dB below the reference's."""
    return trial.pixels >= reference - margin


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats in word mAP without losing PSNR, nor in PSNR without losing word mAP.

    >>> [trial.strength for trial in pareto_front([Trial(1, 20.0, 25.0), Trial(4, 19.0, 24.0), Trial(16, 23.0, 22.0)])]
    [1, 16]
    """
    return [
        one
        for one in trials
        if not any(
            other.text >= one.text
            and other.pixels >= one.pixels
            and (other.text, other.pixels) != (one.text, one.pixels)
            for other in trials
        )
    ]
