"""A fixed climb on a GPU as one CUDA graph: its thousand small launches become one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.ot.semidual import Problem

Climb = Callable[[Problem], tuple[Tensor, Tensor]]

LARGEST = 2**23  # entries of a batch's costs above which kernels outlast their launches
UNITS, CODES = 16, 256  # to multiples of which problems are padded, so that few graphs serve all batches
KEPT = 16  # graphs, the least used go first

_graphs: OrderedDict[tuple[Any, ...], _Graph | None] = OrderedDict()


class _Graph:
    """A climb recorded on problems of one shape, its inputs and outputs in memory of their own."""

    def __init__(self, climb: Climb, problem: Problem) -> None:
        self.problem = Problem(*(part.clone() for part in problem))
        aside = torch.cuda.Stream(problem.cost.device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            climb(self.problem)  # libraries take their workspaces before the recording
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
            self.found = climb(self.problem)

    def __call__(self, problem: Problem) -> tuple[Tensor, Tensor]:
        torch._foreach_copy_(list(self.problem), list(problem))
        self.graph.replay()
        potentials, error = self.found
        return potentials.clone(), error.clone()


def replayed(climb: Climb, problem: Problem, *settings: Any) -> tuple[Tensor, Tensor]:
    """What `climb` gives for a problem on a GPU, padded and replayed; -> b m, b.

    `climb` must read nothing back from the device and depend on the problem and `settings` alone. A problem that is
    too large to gain, one inside of another graph or of `torch.compile`, and a climb that cannot be recorded on this
    machine are computed as they are.
    """
    cost = problem.cost
    if not cost.is_cuda or cost.numel() > LARGEST or torch.compiler.is_compiling():
        return climb(problem)
    with torch.cuda.device(cost.device):
        return climb(problem) if torch.cuda.is_current_stream_capturing() else _replayed(climb, problem, settings)


def _replayed(climb: Climb, problem: Problem, settings: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    cost = problem.cost
    m, n = (-(-size // step) * step for size, step in zip(cost.shape[1:], (UNITS, CODES), strict=True))
    key = (cost.device, cost.dtype, len(cost), m, n, *settings)
    padded = problem.padded(m, n)
    if key not in _graphs:
        _graphs[key] = _recorded(climb, padded)
        while len(_graphs) > KEPT:
            _graphs.popitem(last=False)
    _graphs.move_to_end(key)
    graph = _graphs[key]
    if graph is None:
        return climb(problem)
    potentials, error = graph(padded)
    return potentials[:, : cost.shape[1]], error


def _recorded(climb: Climb, problem: Problem) -> _Graph | None:
    stream = torch.cuda.current_stream()
    try:
        return _Graph(climb, problem)
    except RuntimeError:  # a library of this machine that cannot be recorded
        torch.cuda.set_stream(stream)  # a broken recording leaves its own
        torch.cuda.synchronize()
        return None
