"""How much of a training run is done, counted in an optimizer's steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RunProgress(nn.Module):
    """Counts the steps of an optimizer; the count is part of the state dict, so a resumed run goes on with it.

    Raises ValueError if `total_steps` is below 1.

    >>> progress = RunProgress(total_steps=4)
    >>> progress.count()
    >>> progress.share
    0.25
    """

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        self.total_steps, self.done = total_steps, 0

    def count(self, *_: Any) -> None:
        """Count one step; the signature is that of an optimizer's hook."""
        self.done += 1

    @property
    def share(self) -> float:
        """Share of the run that is done, at most 1."""
        return min(1.0, self.done / self.total_steps)

    def get_extra_state(self) -> Tensor:
        """The number of steps, as a tensor, which every file format takes."""
        return torch.tensor(self.done)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of steps."""
        self.done = int(state)
