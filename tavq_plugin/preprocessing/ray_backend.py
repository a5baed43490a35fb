"""Shards on Ray: one actor a worker, each with an encoder of its own; only as many shards in flight as workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.manifest import shard_path


class Worker:
    """Lives in a process of its own."""

    def __init__(self, load_encoder: Callable[[], TextEncoder], make: Callable, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.encoder, self.make = load_encoder(), make

    def process(self, number: int, records: list, out: Path, wait: float) -> tuple:
        """See `process_shard`; gives (number, what it gave)."""
        return number, self.make(records, shard_path(out, number), self.encoder, wait=wait)


def work_on_ray(
    address: str, workers: int, load_encoder: Callable[[], TextEncoder], make: Callable
) -> Callable[..., Iterator[tuple[int, bool | None]]]:
    """The work of `prepare` on a Ray at `address` ("" starts one here); the folder must be seen by all its nodes."""
    try:
        import ray
    except ImportError as error:
        raise ImportError('--ray needs Ray: pip install "tavq-plugin[scale]"') from error
    import torch

    def work(todo: Iterator, out: Path, wait: float) -> Iterator:
        ours = not ray.is_initialized()
        if ours:
            ray.init(address or None, include_dashboard=False, log_to_driver=False)
        try:
            # reserves no CPU: an actor that waits for one hangs silently; so Ray is told to spread them
            actor = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(Worker)
            idle = [actor.remote(load_encoder, make, torch.get_num_threads()) for _ in range(workers)]
            busy = {}
            for number, records in todo:
                if not idle:
                    yield from _next(ray, busy, idle)
                worker = idle.pop()
                busy[worker.process.remote(number, records, out.resolve(), wait)] = worker
            while busy:
                yield from _next(ray, busy, idle)
        finally:
            if ours:
                ray.shutdown()

    return work


def _next(ray, busy: dict, idle: list) -> Iterator[tuple[int, bool | None]]:
    (done,), _ = ray.wait(list(busy), num_returns=1)
    idle.append(busy.pop(done))
    yield ray.get(done)
