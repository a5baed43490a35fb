"""Two processes of one gloo group, started once, that run the same function and return one result per rank."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch

LIMIT = 120  # seconds a call may take; a rank that hangs is ended


class TwoRanks:
    """`both(function, *args) -> [rank 0's result, rank 1's]`; started at the first call, again after a failure."""

    def __init__(self) -> None:
        self._started: list[tuple[Any, Connection]] = []

    def both(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run a function of a module in both processes; an AssertionError carries the tracebacks of ranks that fail."""
        if not self._started:
            self._start()
        for _, pipe in self._started:
            pipe.send((function, args))
        results = [pipe.recv() if pipe.poll(LIMIT) else (False, f"no answer in {LIMIT} s") for _, pipe in self._started]
        if not all(fine for fine, _ in results):
            self.stop()
            raise AssertionError("\n".join(f"rank {r}: {what}" for r, (fine, what) in enumerate(results) if not fine))
        return [what for _, what in results]

    def _start(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            self._started.append((process, ours))

    def stop(self) -> None:
        """End both processes."""
        for process, pipe in self._started:
            pipe.close()
            process.kill()
            process.join()
        self._started = []


def _serve(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1", "TMPDIR": tempfile.gettempdir()}
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=LIMIT // 2))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*args)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)
