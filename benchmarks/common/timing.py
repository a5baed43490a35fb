"""The seconds of one call."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of a call: on a GPU, wall-clock from an idle device to an idle device; else the process's CPU time."""
    on_gpu = device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    began = clock()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - began
