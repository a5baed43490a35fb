"""Measure, during the run, how much of a training step is spent in the plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn


class _Stamp(torch.autograd.Function):
    """Identity whose backward records the time."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, timer: StepTimer) -> Tensor:
        ctx.timer = timer
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.timer._left_plugin = perf_counter()
        return grad, None


class StepTimer:
    """Seconds of whole steps and of the plug-in's part: hierarchy, text, alignment, their backward and update.

    Autograd runs the newest nodes first, so the plug-in's backward ends when the gradient reaches the features that
    entered the hierarchy; that moment is recorded. The optimizer's time is split by numbers of parameters. Times are
    exact on a CPU only; GPU kernels finish later, so synchronise or profile there.
    """

    def __init__(self, hierarchy: nn.Module) -> None:
        self.steps: list[float] = []  # seconds of each step
        self.plugin: list[float] = []  # seconds of it in the plug-in
        self._inside = self._left_plugin = self._entered = 0.0
        self._handles = [
            hierarchy.register_forward_pre_hook(self._enter),
            hierarchy.register_forward_hook(self._leave),
        ]

    def _enter(self, module: nn.Module, args: tuple) -> tuple:
        self._entered = perf_counter()
        features, z_in, *rest = args
        return ([_Stamp.apply(feature, self) for feature in features], _Stamp.apply(z_in, self), *rest)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._inside += perf_counter() - self._entered

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a whole training step."""
        self._inside, start = 0.0, perf_counter()
        yield
        self.steps.append(perf_counter() - start)
        self.plugin.append(self._inside)

    @contextmanager
    def in_plugin(self) -> Iterator[None]:
        """Count a block as the plug-in's time."""
        start = perf_counter()
        yield
        self._inside += perf_counter() - start

    def backward(self, loss: Tensor) -> None:
        """Run loss.backward(), counting its first part as the plug-in's time."""
        self._left_plugin = start = perf_counter()
        loss.backward()
        self._inside += self._left_plugin - start

    @contextmanager
    def update(self, share: float) -> Iterator[None]:
        """Time the optimizer's step; `share` is the plug-in's share of its parameters, and so of its time."""
        start = perf_counter()
        yield
        self._inside += share * (perf_counter() - start)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @property
    def share(self) -> float:
        """The plug-in's share of the time of all steps, 0..1."""
        return sum(self.plugin) / sum(self.steps)
