"""Requests of `tavq caption` to a server, against a perfect sliding window: python benchmarks/caption_server.py.

The server is a local one that waits and answers. A tenth of its answers are slow. The ideal is simulated: whenever one
of the requests at work is answered, the next one starts at once. Batches, which wait for their slowest request, are
simulated beside it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from common.machine import machine
from common.result_files import save_results
from PIL import Image

REQUESTS, CONCURRENCY, SLOW_SHARE = 200, 16, 0.1
FAST_S, SLOW_S = 0.5, 5.0
AT_LEAST = 0.90  # of the ideal throughput
TEXT = "A small red boat lies on the sand beside two wooden houses under a grey sky."


def answer_seconds(requests: int, fast: float = FAST_S, slow: float = SLOW_S) -> list[float]:
    """How long the server thinks about each request, in the order in which they come."""
    draw = random.Random(0)
    slow_ones = set(draw.sample(range(requests), round(SLOW_SHARE * requests)))
    return [slow if i in slow_ones else fast for i in range(requests)]


def window_seconds(seconds: Sequence[float], concurrency: int) -> float:
    """Duration of all requests by a perfect sliding window.

    >>> window_seconds([1, 1, 4, 1, 1], 2)
    5
    """
    ends: list[float] = [0] * concurrency
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def batch_seconds(seconds: Sequence[float], concurrency: int, batch: int) -> float:
    """The same by batches, each with a window of its own.

    >>> batch_seconds([1, 1, 4, 1, 1], 2, 2)
    6
    """
    return sum(window_seconds(seconds[i : i + batch], concurrency) for i in range(0, len(seconds), batch))


class Thinking(BaseHTTPRequestHandler):
    """Answers each request after the next of the server's waits."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        with server.lock:
            number, server.came = server.came, server.came + 1
        time.sleep(server.waits[number % len(server.waits)])
        usage = {"prompt_tokens": 300, "completion_tokens": 20}
        choice = {"message": {"content": TEXT}, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def thinking_server(waits: Sequence[float]) -> Any:
    """A server on a free port of this machine."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Thinking)
    server.request_queue_size = 64
    server.waits, server.came, server.lock = waits, 0, threading.Lock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def run_seconds(images: Path, out: Path, server: Any, concurrency: int) -> float:
    """Duration of one `tavq caption` from its first request to its last answer, in a process of its own."""
    first: list[float] = []
    waits = server.waits
    command = [sys.executable, "-m", "tavq_plugin", "caption", "--data", str(images), "--out", str(out), "--model", "m"]
    command += ["--server", f"http://127.0.0.1:{server.server_port}/v1", "--concurrency", str(concurrency)]
    server.came = 0
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        if server.came and not first:
            first.append(time.perf_counter())
        time.sleep(0.002)
        if out.exists() and out.read_bytes().count(b"\n") == len(waits):
            break
    end = time.perf_counter()
    printed, errors = process.communicate()
    if process.returncode or json.loads(printed)["written"] != len(waits):
        raise RuntimeError(f"tavq caption failed: {errors}")
    return end - first[0]


def measure(requests: int, concurrency: int, waits: Sequence[float], repeats: int) -> list[float]:
    """Seconds of each run."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for i in range(requests):
            Image.effect_noise((256, 256), 60 + i % 40).convert("RGB").save(images / f"{i:03}.jpg", quality=90)
        server = thinking_server(waits)
        try:
            for i in range(repeats):
                seconds.append(run_seconds(images, Path(folder) / f"{i}.jsonl", server, concurrency))
        finally:
            server.shutdown()
            server.server_close()
    return seconds


def main(
    argv: Sequence[str] | None = None,
    *,
    requests: int = REQUESTS,
    concurrency: int = CONCURRENCY,
    fast: float = FAST_S,
    slow: float = SLOW_S,
) -> None:
    """Measure, print and write benchmarks/results/caption_server.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--note", default="", help="a line about the machine for the table")
    arguments = parser.parse_args(argv)
    waits = answer_seconds(requests, fast, slow)
    ideal, batches = window_seconds(waits, concurrency), batch_seconds(waits, concurrency, 2 * concurrency)
    seconds = measure(requests, concurrency, waits, arguments.repeats)
    median = statistics.median(seconds)
    share = ideal / median
    lines = [
        f"# `tavq caption`: {requests} requests to a server, {concurrency} at once",
        "",
        f"{machine()}. {arguments.note}".strip(),
        "",
        f"The server answers after {fast:g} s; {SLOW_SHARE:.0%} of its answers take {slow:g} s. Images are JPEGs of "
        "256 × 256 pixels. A run counts from the first request that the server sees to the last text in the file.",
        "",
        "| | seconds | throughput, of the ideal |",
        "|---|---|---|",
        f"| perfect sliding window (simulated) | {ideal:.2f} | 100.0% |",
        f"| `tavq caption`, median of {len(seconds)} runs ({min(seconds):.2f} to {max(seconds):.2f}) | {median:.2f} "
        f"| {share:.1%} |",
        f"| batches of {2 * concurrency}, as before this release (simulated) | {batches:.2f} | {ideal / batches:.1%} |",
        "",
        f"Target: at least {AT_LEAST:.0%} of the ideal; {'reached' if share >= AT_LEAST else 'missed'}.",
    ]
    page = "\n".join(lines) + "\n"
    print(page)
    content = {"requests": requests, "concurrency": concurrency, "fast_s": fast, "slow_s": slow, "ideal_s": ideal,
               "batches_s": batches, "seconds": seconds, "share_of_ideal": share, "machine": machine(),
               "note": arguments.note}  # fmt: skip
    save_results(arguments.out / "caption_server.json", content, page)


if __name__ == "__main__":
    main()
