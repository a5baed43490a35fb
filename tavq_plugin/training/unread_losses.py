"""The losses of the steps since the latest row of the history; they stay on the device until a row is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

AT_MOST = 1000  # passes; that many small tensors take half a megabyte


class _Pass(NamedTuple):
    number: int  # of its step
    names: tuple[str, ...]
    values: Tensor  # t float32


class UnreadLosses:
    """Loss terms of one pass after another. `read` fetches them all at once, and finds those that are not finite.

    >>> losses = UnreadLosses()
    >>> losses.add(7, ["pixel"], torch.tensor([0.5]))
    >>> losses.read()
    {'pixel': 0.5}
    """

    def __init__(self) -> None:
        self._passes: list[_Pass] = []

    def add(self, number: int, names: Sequence[str], values: Tensor) -> None:
        """Keep the terms of a pass of step `number`; t names, t. Raises as `read` if very many are unread."""
        self._passes.append(_Pass(number, tuple(names), values))
        if len(self._passes) > AT_MOST and number != self._passes[0].number:
            self._fetch(self._passes[:-1])
            del self._passes[:-1]

    def read(self) -> dict[str, float]:
        """The terms of the latest step, averaged over its passes; {} if nothing was added since the last read.

        Raises FloatingPointError, which names the terms and their step, if one of any step is not finite.
        """
        passes, self._passes = self._passes, []
        rows = self._fetch(passes)
        last = [row for row, each in zip(rows, passes, strict=True) if each.number == passes[-1].number]
        return {name: sum(row[name] for row in last) / len(last) for name in last[0]} if last else {}

    @staticmethod
    def _fetch(passes: Sequence[_Pass]) -> list[dict[str, float]]:
        """The terms of each pass; the device is read once. Raises as `read`."""
        if not passes:
            return []
        values = iter(torch.cat([each.values for each in passes]).tolist())
        rows = [dict(zip(each.names, islice(values, len(each.names)), strict=True)) for each in passes]
        for each, row in zip(passes, rows, strict=True):
            if broken := {name: value for name, value in row.items() if not math.isfinite(value)}:
                others = ", ".join(f"{name} {value:.3g}" for name, value in row.items() if name not in broken)
                raise FloatingPointError(
                    f"{', '.join(f'{name} is {value}' for name, value in broken.items())} at step {each.number} "
                    f"({others or 'nothing else'}): lower optimizer.learning_rate or the weight of that term"
                )
        return rows
