"""An exponential moving average of a run's weights; the run ends with the averaged weights."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from tavq_plugin.distributed import load_module

PREFIX = "module."  # of the averages' names in a checkpoint, as in torch's AveragedModel


class WeightAverage:
    """The average of parameters only; buffers keep their last values.

    After n updates the decay is at most (1 + n) / (10 + n), so that a short run does not end near its first weights.
    It is torch's AveragedModel, except that the number of updates is a plain number: AveragedModel sends it to the
    device and reads it back in each update, and so makes a GPU wait.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._live, self._decay, self._updates = nn.ParameterList(parameters), decay, 0
        self._averages = deepcopy(self._live)

    @torch.no_grad()
    def update(self) -> None:
        """Blend the current weights into the average; the first call copies them."""
        averages: list[Tensor] = list(self._averages.parameters())
        live: list[Tensor] = list(self._live.parameters())
        n = self._updates
        if n == 0:
            for mean, value in zip(averages, live, strict=True):
                mean.copy_(value)  # sharded tensors have no _foreach_copy_
        else:
            torch._foreach_lerp_(averages, live, 1 - min(self._decay, (1 + n) / (10 + n)))
        self._updates = n + 1

    @torch.no_grad()
    def apply(self) -> None:
        """Overwrite the weights with their average; does nothing before the first update."""
        if self._updates > 0:
            for live, mean in zip(self._live.parameters(), self._averages.parameters(), strict=True):
                live.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the averages and the number of updates."""
        averages = {PREFIX + name: value for name, value in self._averages.state_dict().items()}
        return {"n_averaged": torch.tensor(self._updates), **averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        averages = {name.removeprefix(PREFIX): value for name, value in state.items() if name != "n_averaged"}
        load_module(self._averages, averages)
        self._updates = int(state["n_averaged"])
