"""Peak memory of `tavq prepare` on few and on many records, in one process each: python benchmarks/prepare.py.

The encoder is tiny and random, so that the pipeline is measured and not a model. Texts are synthetic, of two sentences.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common.machine import machine
from common.result_files import save_results
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tavq_plugin.preprocessing.prepare_store import prepare
from tavq_plugin.text.encoder import TextEncoder

SIZES = (10_000, 100_000)
SHARD = 1024
WITHIN = 0.10  # more memory for ten times the records
COLOURS = "red blue green white black grey brown pink orange purple".split()  # noqa: SIM905
THINGS = "car dog cat house boat tree man girl bird chair table lamp horse train cup door".split()  # noqa: SIM905
ACTS = "stands sits lies waits runs sleeps jumps shines".split()  # noqa: SIM905


def tiny_encoder() -> TextEncoder:
    """One layer of width 64 over a vocabulary of letters."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz0123456789."])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return TextEncoder(BertModel(BertConfig(vocab_size=len(vocabulary), **size)), tokenizer, dtype=torch.float32)


def texts(file: Path, records: int) -> None:
    """Write synthetic records, each with one unique sentence."""
    draw = random.Random(0)
    with file.open("w") as lines:
        for i in range(records):
            words = [draw.choice(choice) for choice in (COLOURS, THINGS, ACTS, COLOURS, THINGS)]
            text = "A {} {} {} near the {} {}.".format(*words) + f" It has number {i}."
            lines.write(json.dumps({"id": f"{i}.jpg", "text": text}) + "\n")


def child(file: Path, out: Path, pipe: Any) -> None:
    """One run; its peak memory and time are sent through the pipe."""
    torch.set_num_threads(1)
    began, wall = time.process_time(), time.perf_counter()
    done = prepare(file, out, tiny_encoder, shard_size=SHARD, progress=False)
    spent = {"cpu_s": time.process_time() - began, "wall_s": time.perf_counter() - wall}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"texts": done.texts, "shards": done.shards, "peak_mb": round(peak)}
    pipe.send(row | {name: round(seconds) for name, seconds in spent.items()})


def measure(sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """One row per size."""
    rows, spawn = [], multiprocessing.get_context("spawn")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "captions.jsonl"
            texts(file, size)
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=child, args=(file, Path(folder) / "store", theirs))
            process.start()
            rows.append(ours.recv())
            process.join()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write benchmarks/results/prepare.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--note", default="", help="a line about the machine for the table")
    arguments = parser.parse_args(argv)
    rows = measure()
    growth = rows[-1]["peak_mb"] / rows[0]["peak_mb"] - 1
    lines = [
        f"# Memory of `tavq prepare`, shards of {SHARD:,} texts, one thread",
        "",
        f"{machine()}. {arguments.note}".strip(),
        "",
        "| records | shards | peak MB | CPU s | wall s |",
        "|---|---|---|---|---|",
        *(f"| {r['texts']:,} | {r['shards']} | {r['peak_mb']:,} | {r['cpu_s']} | {r['wall_s']} |" for r in rows),
        "",
        f"{growth:+.1%} for ten times the records (target: within {WITHIN:.0%}).",
    ]
    page = "\n".join(lines) + "\n"
    print(page)
    content = {
        "shard_size": SHARD,
        "rows": rows,
        "growth": round(growth, 4),
        "machine": machine(),
        "note": arguments.note,
    }
    save_results(arguments.out / "prepare.json", content, page)


if __name__ == "__main__":
    main()
