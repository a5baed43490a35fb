"""Make shards on Ray: one actor per worker, each with its own encoder, and one shard at a time per actor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.manifest import shard_path


class ShardWorker:
    """Makes shards in its own process."""

    def __init__(self, load_encoder: Callable[[], TextEncoder], make: Callable, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.encoder, self.make = load_encoder(), make

    def process(self, number: int, records: list, out: Path, wait: float) -> tuple:
        """The shard's number, and what `process_shard` returned for it."""
        return number, self.make(records, shard_path(out, number), self.encoder, wait=wait)


def work_on_ray(
    address: str, workers: int, load_encoder: Callable[[], TextEncoder], make: Callable
) -> Callable[..., Iterator[tuple[int, bool | None]]]:
    """Like `_in_this_process`, on the Ray cluster at `address`; "" starts one on this machine.

    All nodes must see the folder of the store. Raises ImportError if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('--ray needs Ray: pip install "tavq-plugin[scale]"') from error
    import torch

    def work(todo: Iterator, out: Path, wait: float) -> Iterator:
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(address or None, include_dashboard=False, log_to_driver=False)
        try:
            # Reserve no CPU: an actor that waits for a CPU hangs silently. SPREAD places the actors on the nodes.
            actor = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(ShardWorker)
            idle = [actor.remote(load_encoder, make, torch.get_num_threads()) for _ in range(workers)]
            busy: dict[Any, Any] = {}  # future → its actor
            for number, records in todo:
                if not idle:
                    yield _next(ray, busy, idle)
                worker = idle.pop()
                busy[worker.process.remote(number, records, out.resolve(), wait)] = worker
            while busy:
                yield _next(ray, busy, idle)
        finally:
            if started_here:
                ray.shutdown()

    return work


def _next(ray, busy: dict, idle: list) -> tuple[int, bool | None]:
    """Wait for one result; its actor moves from `busy` to `idle`."""
    (done,), _ = ray.wait(list(busy), num_returns=1)
    idle.append(busy.pop(done))
    return ray.get(done)
