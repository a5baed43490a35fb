"""A sliding window of requests: as soon as one is answered, the next one is sent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_window(
    jobs: Iterable[Job], work: Callable[[Job, threading.Event], Result], size: int
) -> Generator[list[tuple[Job, Result]]]:
    """Jobs with their results, as they come: lists of all that are finished by now.

    `size` threads work at once, and as many more jobs are held ready for them. The event that `work` gets is set when
    the caller stops; the threads are daemons, so a request that hangs does not keep the process alive. What `work`
    raises is raised here, after the results that came before it.

    >>> list(in_window([1, 2, 3], lambda job, stopped: job * 10, size=1))[0][0]
    (1, 10)
    """
    todo: queue.Queue[Any] = queue.Queue()
    done: queue.Queue[tuple[Job, Any, BaseException | None]] = queue.Queue()
    stopped = threading.Event()

    def run() -> None:
        while (given := todo.get()) is not None and not stopped.is_set():
            try:
                done.put((given[0], work(given[0], stopped), None))
            except BaseException as error:  # raised again by the caller's thread
                done.put((given[0], None, error))

    for _ in range(size):
        threading.Thread(target=run, daemon=True, name="caption request").start()
    rest, waiting = iter(jobs), 0
    try:
        while True:
            for job in islice(rest, 2 * size - waiting):
                todo.put((job,))
                waiting += 1
            if not waiting:
                return
            ready = [done.get()]
            while not done.empty():
                ready.append(done.get())
            waiting -= len(ready)
            if results := [(job, result) for job, result, error in ready if error is None]:
                yield results
            for _, _, error in ready:
                if error is not None:
                    raise error
    finally:
        stopped.set()
        for _ in range(size):
            todo.put(None)
