"""CPU seconds per record of `tavq prepare`, beside an earlier commit: python benchmarks/prepare_speed.py 7208d31.

Both sides make a store of the same file in turns, each in a new process of one thread, after a small store that loads
the models. The encoder is tiny and random, as in `prepare.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.machine import machine
from common.result_files import markdown_table, save_results
from prepare import SHARD, texts, tiny_encoder

HERE = Path(__file__).resolve().parents[1]
WITHIN = 0.05  # more CPU seconds per record than the earlier commit
WARM_UP = 10  # records of a store that is made first, so that models are loaded
CHILD = """
import importlib, os, sys, time
from functools import partial
import torch

def first(*names):  # of the modules, whose names have changed
    for name in names:
        if os.path.exists(name.replace(".", os.sep) + ".py"):
            module = importlib.import_module(name)
            assert module.__file__.startswith(os.getcwd()), module.__file__  # not that of an installed package
            return module
    raise ModuleNotFoundError(f"{os.getcwd()} has none of {names}")

prepare = first("tavq_plugin.preprocessing.prepare_store", "tavq_plugin.text.prepare").prepare
encoder = first("tavq_plugin.text.encoder", "tavq_plugin.text.embed").TextEncoder
torch.set_num_threads(1)
folder, shard, warm_up, warm_out, captions, out = sys.argv[1:]
load = partial(encoder.from_pretrained, folder, dtype=torch.float32, device="cpu")
prepare(warm_up, warm_out, load, progress=False)
model = load()
began = time.process_time()
made = prepare(captions, out, lambda: model, shard_size=int(shard), progress=False)
print(1000 * (time.process_time() - began) / made.texts)
"""


def checkout(revision: str, folder: Path) -> Path:
    """The files of a revision of this repository, in a folder of its own."""
    archive = subprocess.run(["git", "-C", str(HERE), "archive", revision], check=True, capture_output=True)
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def save_encoder(folder: Path) -> Path:
    """The tiny encoder as a folder that `--encoder` takes."""
    encoder = tiny_encoder()
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


def cpu_ms(code: Path, encoder: Path, warm_up: Path, captions: Path, out: Path) -> float:
    """Milliseconds of CPU per record, by the code in a folder, after a first store in the same process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    arguments = map(str, (encoder, SHARD, warm_up, f"{out}-warm", captions, out))
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], cwd=code, env={**os.environ, **threads, "PYTHONPATH": str(code)},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        raise RuntimeError(f"prepare of {code} failed: {ran.stderr[-2000:]}")
    return float(ran.stdout.split()[-1])


def measure(sides: Mapping[str, Path], records: int, repeats: int) -> dict[str, list[float]]:
    """Side → milliseconds of CPU per record, one per repeat; the sides take turns, and swap who is first."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        encoder = save_encoder(folder / "encoder")
        warm_up, captions = folder / "warm.jsonl", folder / "captions.jsonl"
        texts(warm_up, WARM_UP)
        texts(captions, records)
        for repeat in range(repeats):
            for name in list(sides) if repeat % 2 == 0 else [*reversed(sides)]:
                found[name].append(cpu_ms(sides[name], encoder, warm_up, captions, folder / f"{name}-{repeat}"))
    return found


def summary(found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians and extremes per side, and the median of the paired ratios: the last side over the first."""
    before, now = found.values()
    ratios = [new / old for old, new in zip(before, now, strict=True)]
    return {
        "sides": {
            name: {"median": statistics.median(each), "low": min(each), "high": max(each)}
            for name, each in found.items()
        },
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write benchmarks/results/prepare_speed.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the earlier commit")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--note", default="", help="a line about the machine for the table")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        sides = {arguments.revision: checkout(arguments.revision, Path(place) / "earlier"), "now": HERE}
        found = measure(sides, arguments.records, arguments.repeats)
    result = summary(found)
    ratio = result["ratio"]
    page = "\n".join(
        [
            "# CPU time of `tavq prepare` per record, beside an earlier commit",
            "",
            f"{machine()}. {arguments.note}".strip(),
            "",
            f"{arguments.records:,} synthetic records of two sentences, shards of {SHARD:,}, one thread, a tiny "
            f"encoder; {arguments.repeats} pairs in turns, after a warm-up.",
            "",
            markdown_table(
                ["code", "ms per record, median", "lowest", "highest"],
                [[name, *(each[key] for key in ("median", "low", "high"))] for name, each in result["sides"].items()],
            ),
            f"Ratio of the pairs: median {ratio['median']:.3f}, {ratio['low']:.3f} to {ratio['high']:.3f} (target: at "
            f"most {1 + WITHIN:.2f}).",
        ]
    )
    print(page)
    content = {"records": arguments.records, "shard_size": SHARD, "pairs": found, **result, "machine": machine()}
    save_results(arguments.out / "prepare_speed.json", {**content, "note": arguments.note}, page + "\n")


if __name__ == "__main__":
    main()
