"""What an evaluation covers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is evaluated; the same for every run of a comparison. Raises ValueError for a number below 2."""

    words: int = 100  # most frequent content words of the training texts
    probe_rows: int = 6000  # the probes are fitted on the first training images, at most this many
    transport_images: int = 100  # retrieval by transport takes at most this many held-out images; 0: none
    judges: tuple[str, ...] = ("inception", "lpips", "mobilenet", "squeezenet")  # judging networks
    batch_size: int = 50  # images

    def __post_init__(self) -> None:
        for name in ("words", "probe_rows", "transport_images", "batch_size"):
            value = getattr(self, name)
            if value < 2 and not (name == "transport_images" and value == 0):
                raise ValueError(f"{name} must be at least 2, got {value}")
