"""An exponential moving average of a run's weights; the run ends with the averaged weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tavq_plugin.distributed import load_module


class WeightAverage:
    """torch's AveragedModel of the parameters only; buffers keep their last values.

    After n updates the decay is at most (1 + n) / (10 + n), so that a short run does not end near its first weights.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._live = nn.ParameterList(parameters)

        @torch.no_grad()
        def blend(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
            n = int(updates)
            torch._foreach_lerp_(list(averages), list(values), 1 - min(decay, (1 + n) / (10 + n)))

        self._model = AveragedModel(self._live, multi_avg_fn=blend)

    def update(self) -> None:
        """Blend the current weights into the average; the first call copies them."""
        self._model.update_parameters(self._live)

    @torch.no_grad()
    def apply(self) -> None:
        """Overwrite the weights with their average; does nothing before the first update."""
        if self._model.n_averaged > 0:
            for live, mean in zip(self._live, self._model.module.parameters(), strict=True):
                live.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the averages and the number of updates."""
        return self._model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        load_module(self._model, state)
