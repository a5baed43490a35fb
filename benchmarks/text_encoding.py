"""Splitting and encoding the Flickr8k part of a pack on one core: python benchmarks/text_encoding.py --data FOLDER.

CPU seconds of one thread on one core are given as well as wall-clock seconds, which other processes disturb.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import copy
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from common.machine import machine
from common.result_files import save_results

from tavq_plugin.text import TextStore, offline_encoder, split
from tavq_plugin.types import GRANULARITIES

ROUNDS = 5
SAMPLE = 512  # strings per granularity, for the paired comparison
TARGET = 480  # seconds on one core for the whole encoding


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write benchmarks/results/text_encoding.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl")
    parser.add_argument("--images", type=int, default=None, help="only so many, for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = measure(read(arguments.data)[: arguments.images])
    page = table(result)
    print(page)
    save_results(arguments.out / "text_encoding.json", result, page)


def read(folder: Path) -> list[str]:
    """Long texts of the Flickr8k train images."""
    with (folder / "captions.jsonl").open() as lines:
        records = [json.loads(line) for line in lines]
    return [r["long_text"] for r in records if r["source"] == "flickr8k" and r["split"] == "train"]


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, and wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, {"wall_s": round(time.perf_counter() - wall, 3), "cpu_s": round(time.process_time() - cpu, 3)}


def measure(texts: list[str]) -> dict[str, Any]:
    """Measure splitting alone, splitting and encoding in the chosen dtype, then both dtypes on a sample."""
    split("Load the tagger.")
    units, splitting = timed(lambda: [split(text) for text in texts])
    distinct = {name: list(dict.fromkeys(u for found in units for u in found.texts(name))) for name in GRANULARITIES}
    kept = {name: sum(len(found[name]) for found in units) for name in GRANULARITIES}
    encoder = offline_encoder()
    store, building = timed(lambda: TextStore.build(texts, encoder, progress=True))
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)  # before the copies below
    counts = store.counts()
    rows = torch.randint(len(store), (200, 64), generator=torch.Generator().manual_seed(0))
    store.batch(rows[0])
    _, gathering = timed(lambda: [store.batch(batch) for batch in rows])
    plain = offline_encoder(dtype=torch.float32)
    pairs = {name: paired(plain, strings) for name, strings in distinct.items()}
    return {
        "images": len(texts),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "bfloat16_instructions": bfloat16_instructions(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "encoder": encoder.fingerprint,
        "units_kept": kept,
        "units_distinct": {name: len(strings) for name, strings in distinct.items()} | {"all": counts["distinct"]},
        "encoder_calls_saved": round(sum(kept.values()) / max(1, counts["distinct"]), 2),
        "splitting": splitting | {"sentences_per_cpu_s": round(counts["sentence"] / splitting["cpu_s"])},
        "sample_float32_vs_bfloat16": pairs,
        "chosen": {"dtype": encoder.stats.dtype, "speedup": encoder.stats.speedup, "cosine": encoder.stats.cosine},
        "split_and_encode": building | {"target_s": TARGET, "in_pieces": counts["in_pieces"]},
        "gather": gathering | {"images_per_cpu_s": round(rows.numel() / gathering["cpu_s"])},
        "table_mb": round(store.table.numel() * store.table.element_size() / 1e6, 1),
        "peak_memory_mb": peak,
    }


def paired(encoder: Any, strings: list[str]) -> dict[str, float]:
    """Both dtypes on the same strings, interleaved; medians, spread and the ratio."""
    sample = strings[:: max(1, len(strings) // SAMPLE)][:SAMPLE]
    sides = {}
    for dtype in (torch.float32, torch.bfloat16):
        twin = copy.copy(encoder)
        twin.model, twin.dtype = copy.deepcopy(encoder.model).to(dtype), dtype
        twin.stats = copy.copy(encoder.stats)
        twin.encode(sample)
        sides[str(dtype).removeprefix("torch.")] = twin
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    vectors = {}
    for _ in range(ROUNDS):
        for name, twin in sides.items():
            vectors[name], spent = timed(lambda twin=twin: twin.encode(sample))
            seconds[name].append(spent["cpu_s"])
    ratios = [a / b for a, b in zip(seconds["float32"], seconds["bfloat16"], strict=True)]
    return {
        "strings": len(sample),
        "float32_per_cpu_s": round(len(sample) / statistics.median(seconds["float32"])),
        "bfloat16_per_cpu_s": round(len(sample) / statistics.median(seconds["bfloat16"])),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "least_cosine": round((vectors["float32"] * vectors["bfloat16"]).sum(-1).min().item(), 6),
    }


def bfloat16_instructions() -> str:
    """The processor's instructions for bfloat16."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return ", ".join(flag for flag in ("avx512_bf16", "amx_bf16") if flag in text) or "no bfloat16 instructions"


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    done, pairs = result["split_and_encode"], result["sample_float32_vs_bfloat16"]
    lines = [
        f"# Text of {result['images']:,} images on one core",
        "",
        f"{result['machine']}, {result['threads']} thread, {result['bfloat16_instructions']}, "
        f"transformers {result['versions']['transformers']}, {result['encoder']}.",
        "",
        "| step | CPU s | wall s | |",
        "|---|---|---|---|",
        f"| splitting | {result['splitting']['cpu_s']} | {result['splitting']['wall_s']} | "
        f"{result['splitting']['sentences_per_cpu_s']:,} sentences/s |",
        f"| splitting + encoding, {result['chosen']['dtype']} | {done['cpu_s']} | {done['wall_s']} | "
        f"target {done['target_s']} s; {done['in_pieces']} strings encoded in pieces |",
        f"| 200 batches of 64 from the store | {result['gather']['cpu_s']} | {result['gather']['wall_s']} | "
        f"{result['gather']['images_per_cpu_s']:,} images/s |",
        "",
        f"Each distinct string once: {result['encoder_calls_saved']}× fewer encodings. "
        f"Table {result['table_mb']} MB (float16), peak memory {result['peak_memory_mb']:,} MB.",
        "",
        f"| units | kept | distinct | float32/s | bfloat16/s | ratio (range of {ROUNDS}) | least cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pair in pairs.items():
        low, high = pair["ratio_range"]
        lines.append(
            f"| {name} | {result['units_kept'][name]:,} | {result['units_distinct'][name]:,} | "
            f"{pair['float32_per_cpu_s']:,} | {pair['bfloat16_per_cpu_s']:,} | {pair['ratio']} ({low}–{high}) | "
            f"{pair['least_cosine']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
