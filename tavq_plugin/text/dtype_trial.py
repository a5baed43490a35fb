"""Try whether an encoder is faster in bfloat16, with nearly the same embeddings, on the strings that it will encode."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


class TrialResult(NamedTuple):
    """What one trial measured."""

    model: Any  # the bfloat16 copy
    speedup: float  # of bfloat16 over float32
    cosine: float  # lowest over the strings, between a string's float32 and bfloat16 embeddings


@dataclass(frozen=True)
class DtypeTrial:
    """Thresholds: when bfloat16 is tried, and when it replaces float32."""

    min_strings: int = 2048  # the trial pays off only for so many strings
    min_cosine: float = 0.999
    min_speedup: float = 1.15

    def run(
        self, model: Any, pieces: list[list[int]], forward: Callable[[Any, list[list[int]]], Tensor]
    ) -> TrialResult:
        """Time both dtypes, in turn, on a sample of all lengths; `forward(model, pieces)` gives n d float32."""
        by_length = sorted(pieces, key=len)
        sample = by_length[:: len(by_length) // 64 + 1]
        batches = [sample[i : i + 32] for i in range(0, len(sample), 32)]
        models = {"float32": model, "bfloat16": copy.deepcopy(model).to(torch.bfloat16)}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        embeddings: dict[str, Tensor] = {}
        for _ in range(3):  # the first round warms up
            for name, tried in models.items():
                began = time.perf_counter()
                embeddings[name] = normalize(torch.cat([forward(tried, batch).cpu() for batch in batches]), dim=-1)
                seconds[name].append(time.perf_counter() - began)
        speedup = min(seconds["float32"][1:]) / min(seconds["bfloat16"][1:])
        cosine = (embeddings["float32"] * embeddings["bfloat16"]).sum(-1).min().item()
        return TrialResult(models["bfloat16"], speedup, cosine)

    def passed(self, result: TrialResult) -> bool:
        """Whether bfloat16 was fast enough and close enough."""
        return result.speedup >= self.min_speedup and result.cosine >= self.min_cosine
