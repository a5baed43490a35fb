"""How long splitting takes beside the splitter of another commit: python benchmarks/split_speed.py --commit bf8f9c7.

Each splitter runs in a process of its own, on one thread. In every round both split all texts, one after the other, and
the order changes from round to round; the seconds are of the CPU. The texts are the clean long descriptions of
tests/data, and the markdown ones. Before each time the tagger is loaded anew and reads the short descriptions, so that
it has met some of the words, as in a corpus, and none of the texts. The other commit may not read markdown, and then
splits other units there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.machine import machine
from common.result_files import save_results
from units import read

ROUNDS = 15
TEXTS = ("long", "markdown")
# Reads other texts and texts, then splits the texts once for every line it gets, and answers with the seconds. The
# tagger is loaded anew before each time, and reads the other texts.
_WORKER = """
import json, sys, time
from tavq_plugin.text import Splitter, languages
splitter, (others, texts) = Splitter(), json.loads(sys.stdin.readline())
for _ in sys.stdin:
    languages.tagger.cache_clear()
    for text in others:
        splitter(text)
    began = time.process_time()
    for text in texts:
        splitter(text)
    print(time.process_time() - began, flush=True)
"""


class Worker:
    """A splitter in a process of its own, from the package in a folder."""

    def __init__(self, package: Path, texts: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=package,
            env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        )
        self._say(json.dumps([[description.text for description in read("short")], texts]))

    def seconds(self) -> float:
        """CPU seconds of splitting all texts once."""
        self._say("again")
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def paired(before: Path, now: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Median seconds of both, and the median, least and most of the rounds' ratios."""
    workers = Worker(before, texts), Worker(now, texts)
    pairs = []
    for number in range(ROUNDS + 1):
        order = (0, 1) if number % 2 else (1, 0)
        took = {i: workers[i].seconds() for i in order}
        pairs.append((took[0], took[1]))
    for worker in workers:
        worker.close()
    pairs = pairs[1:]  # the first warms up
    ratios = sorted(now / before for before, now in pairs)
    return {
        "texts": len(texts),
        "before_ms_a_text": round(1000 * statistics.median(pair[0] for pair in pairs) / len(texts), 3),
        "now_ms_a_text": round(1000 * statistics.median(pair[1] for pair in pairs) / len(texts), 3),
        "ratio": round(statistics.median(ratios), 3),
        "least": round(ratios[0], 3),
        "most": round(ratios[-1], 3),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write benchmarks/results/split_speed.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", required=True, help="whose splitter to compare with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    root = Path(__file__).parents[1]
    packed = subprocess.run(
        ["git", "archive", arguments.commit, "tavq_plugin"], cwd=root, check=True, capture_output=True
    ).stdout
    result: dict[str, Any] = {"commit": arguments.commit, "machine": str(machine()), "rounds": ROUNDS}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        for name in TEXTS:
            result[name] = paired(Path(folder), root, [description.text for description in read(name)])
    page = table(result)
    print(page)
    save_results(arguments.out / "split_speed.json", result, page)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Seconds of splitting, beside an earlier splitter",
        "",
        f"{result['machine']}. Commit {result['commit']} and today's splitter took turns in {result['rounds']} rounds; "
        "CPU time of one thread. The ratio is today's time to the earlier one's: the median of the rounds, the least "
        "and the most. Before each time the tagger was loaded anew and read the 44 short descriptions. The earlier "
        "splitter does not read markdown, so its units of the markdown texts are others. "
        "Other jobs ran on the machine.",
        "",
        "| texts | before, ms a text | now, ms a text | ratio | least–most |",
        "|---|---|---|---|---|",
    ]
    for name in TEXTS:
        found = result[name]
        cells = (f"{name} ({found['texts']})", found["before_ms_a_text"], found["now_ms_a_text"], found["ratio"])
        lines.append("".join(f"| {cell} " for cell in cells) + f"| {found['least']}–{found['most']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
