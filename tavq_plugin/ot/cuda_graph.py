"""A fixed schedule on a GPU as one CUDA graph: one launch replaces a thousand small ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tavq_plugin.ot.semidual import Problem

Maximiser = Callable[[Problem], tuple[Tensor, Tensor]]  # potentials b m, marginal error b

UNIT_MULTIPLE, CODE_MULTIPLE = 16, 256  # problems are padded to multiples of these, so that few graphs serve all


class _CapturedGraph:
    """A maximiser recorded on problems of one shape; it holds the memory of its inputs and outputs."""

    def __init__(self, maximiser: Maximiser, problem: Problem) -> None:
        self.problem = Problem(*(part.clone() for part in problem))
        stream = torch.cuda.Stream(problem.cost.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            maximiser(self.problem)  # libraries allocate their workspaces before the recording
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.solution = maximiser(self.problem)

    def __call__(self, problem: Problem) -> tuple[Tensor, Tensor]:
        torch._foreach_copy_(list(self.problem), list(problem))
        self.graph.replay()
        potentials, error = self.solution
        return potentials.clone(), error.clone()


class GraphCache:
    """The recorded graphs, one per shape and settings.

    Args:
        max_graphs: How many are kept; the least recently used is dropped first.
        max_cost_entries: Most entries of a batch's costs. Larger batches are not recorded: their kernels take longer
            than their launches.
    """

    def __init__(self, max_graphs: int = 16, max_cost_entries: int = 2**23) -> None:
        self.max_graphs, self.max_cost_entries = max_graphs, max_cost_entries
        self.graphs: OrderedDict[tuple[Any, ...], _CapturedGraph | None] = OrderedDict()  # None: cannot be recorded

    def run(self, maximiser: Maximiser, problem: Problem, *settings: Any) -> tuple[Tensor, Tensor]:
        """The result of `maximiser(problem)`, replayed from a graph on a GPU; -> b m, b.

        `maximiser` must read nothing back from the device and depend on the problem and `settings` alone. It is called
        directly on a CPU, for a problem that is too large, inside another graph or `torch.compile`, and if this
        machine cannot record it.
        """
        cost = problem.cost
        if not cost.is_cuda or cost.numel() > self.max_cost_entries or torch.compiler.is_compiling():
            return maximiser(problem)
        with torch.cuda.device(cost.device):
            capturing = torch.cuda.is_current_stream_capturing()
            return maximiser(problem) if capturing else self._replay(maximiser, problem, settings)

    def _replay(self, maximiser: Maximiser, problem: Problem, settings: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        cost = problem.cost
        multiples = (UNIT_MULTIPLE, CODE_MULTIPLE)
        m, n = (-(-size // multiple) * multiple for size, multiple in zip(cost.shape[1:], multiples, strict=True))
        key = (cost.device, cost.dtype, len(cost), m, n, *settings)
        padded = problem.padded(m, n)
        if key not in self.graphs:
            self.graphs[key] = _capture(maximiser, padded)
            while len(self.graphs) > self.max_graphs:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        graph = self.graphs[key]
        if graph is None:
            return maximiser(problem)
        potentials, error = graph(padded)
        return potentials[:, : cost.shape[1]], error


def _capture(maximiser: Maximiser, problem: Problem) -> _CapturedGraph | None:
    """The recorded graph; None if a library on this machine cannot be recorded."""
    stream = torch.cuda.current_stream()
    try:
        return _CapturedGraph(maximiser, problem)
    except RuntimeError:
        torch.cuda.set_stream(stream)  # a failed recording leaves its own stream current
        torch.cuda.synchronize()
        return None


GRAPHS = GraphCache()
