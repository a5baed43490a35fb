"""An exponential average of a run's weights, to end with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tavq_plugin.distributed import load_module


class WeightAverage:
    """torch's AveragedModel on the parameters alone; buffers are taken as they are in the end.

    The decay rises to its value as (1 + n) / (10 + n) over the first n updates, so that short runs do not end with
    their first weights.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._live = nn.ParameterList(parameters)

        @torch.no_grad()
        def blend(averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
            n = updates.item()
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))

        self._model = AveragedModel(self._live, multi_avg_fn=blend)

    def update(self) -> None:
        """Blend the present weights in; the first time, take them."""
        self._model.update_parameters(self._live)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average in the weights' place; nothing where there was no update."""
        if self._model.n_averaged > 0:
            for live, mean in zip(self._live, self._model.module, strict=True):
                live.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """For a resume."""
        return self._model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        load_module(self._model, state)
