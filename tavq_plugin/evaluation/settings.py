"""What an evaluation covers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tavq_plugin.evaluation.probes.ridge import PENALTIES, checked_penalties

VERSION = 2  # of what the metrics mean; results of another version are measured anew


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is evaluated; the same for every run of a comparison.

    Lists, as JSON has them, become tuples: `EvaluationSettings(**json.loads(json.dumps(settings.to_dict())))` equals
    `settings`. Raises ValueError for a number below 2 (transport_images and min_text may be 0), or for penalties that
    are fewer than two, not positive or not ascending.
    """

    words: int = 100  # most frequent content words of the training texts
    probe_rows: int = 3000  # the probes are fitted on the first training images, at most this many
    transport_images: int = 100  # retrieval by transport takes at most this many held-out images; 0: none
    judges: tuple[str, ...] = ("inception", "lpips", "mobilenet", "squeezenet")  # judging networks
    batch_size: int = 50  # images
    penalties: tuple[float, ...] = PENALTIES  # ridge penalties that each probe chooses from, ascending
    attentive: bool = True  # whether the attentive probes are fitted, which takes seconds per level
    permutations: int = 20  # times that texts are dealt at random among the held-out images, to measure chance
    ssim: bool = True  # whether SSIM is measured, which takes as long as all probes of a small run
    min_text: int = 10  # images with text that each split needs at least; 0: text may be missing altogether

    def __post_init__(self) -> None:
        for name in ("words", "probe_rows", "transport_images", "batch_size", "permutations"):
            value = getattr(self, name)
            if value < 2 and not (name == "transport_images" and value == 0):
                raise ValueError(f"{name} must be at least 2, got {value}")
        if self.min_text < 2 and self.min_text != 0:
            raise ValueError(f"min_text must be at least 2, or 0 for images without text, got {self.min_text}")
        object.__setattr__(self, "penalties", tuple(checked_penalties(self.penalties)))
        object.__setattr__(self, "judges", tuple(self.judges))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON reads them: tuples are lists."""
        content = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.ssim:
            del content["ssim"]  # results that were kept before this setting existed are still these settings' results
        return content
