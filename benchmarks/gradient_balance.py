"""What balanced gradients cost in a training step: python benchmarks/gradient_balance.py --corpus DATA --json OUT.

A step is a plain training loop's: the small VQGAN (64 px, batch 16), L1 and the quantizer's loss, Adam. It is measured
without a plug-in, with `attach(host, optimizer, weight=0.2)`, the weighted sum, and with `attach(host, optimizer,
balance=1.0)`. Images and texts are those of one corpus, the folder `data` of any `tavq compare`; codebooks start on
latents, so that their codes are in use. All sides train on the same batches and are timed in turns, in another order
each round, so that other load on the machine affects all, after a warm-up. Results are medians over rounds with the
10th and 90th of a hundred; ratios are taken within a round. On a CPU, seconds are the process's CPU time; on a GPU, a
step is timed from an idle device to an idle device. Operations are those that torch's profiler counts in one step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common.machine import machine, versions
from common.result_files import markdown_table, save_results
from common.timing import timed
from overhead import resized
from torch import nn
from torch.profiler import ProfilerActivity, profile

import tavq_plugin as tavq
from tavq_plugin.data.corpus import Corpus, load_corpus
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build_host import small_vqgan
from tavq_plugin.training.sampler import BatchSampler

SIDES: dict[str, dict[str, float] | None] = {
    "no plug-in": None,
    "weighted sum": {"weight": 0.2},
    "balanced": {"balance": 1.0},
}
TARGET = 1.02  # balanced over the weighted sum


def main(
    argv: Sequence[str] | None = None,
    *,
    resolution: int = 64,
    batch_size: int = 16,
    load: Callable[[Path], Corpus] = load_corpus,
) -> None:
    """Measure, print and write the JSON and the page; tests give the sizes and `load`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="the folder data of a comparison")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=4, help="rounds before the first that counts")
    parser.add_argument("--quick", action="store_true", help="4 rounds after 1, to see that it runs")
    arguments = parser.parse_args(argv)
    rounds, warmup = (4, 1) if arguments.quick else (arguments.rounds, arguments.warmup)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    corpus = resized(load(arguments.corpus), resolution)
    steps = {name: TrainingStep(corpus, settings, batch_size, device) for name, settings in SIDES.items()}
    result = {
        "machine": machine(), "threads": 1, "device": device, "versions": versions(("torch",)), "corpus": corpus.name,
        "resolution": resolution, "batch_size": batch_size, "rounds": rounds, "warmup": warmup, "target": TARGET,
        "sides": measured(steps, rounds, warmup, device), "protocol": __doc__,
    }  # fmt: skip
    shown = page(result)
    save_results(arguments.json, result, shown)
    print(shown, end="", flush=True)


class TrainingStep:
    """Steps of a plain training loop; every side begins with the same weights and sees the same batches."""

    def __init__(self, corpus: Corpus, settings: Mapping[str, float] | None, batch_size: int, device: str) -> None:
        torch.manual_seed(0)
        self.corpus, self.device, self.number = corpus, device, 0
        self.host = small_vqgan(corpus.images.shape[-1]).to(device)
        self.sampler = BatchSampler(corpus.n_train, batch_size=batch_size, seed=0)
        start_codebook(self.host, self.images(range(min(64, corpus.n_train))))
        self.optimizer = torch.optim.Adam(self.host.parameters(), lr=1e-4, fused=True)
        self.align = None if settings is None else tavq.attach(
            self.host, self.optimizer, store=corpus.store, log_summary=False, **settings
        )  # fmt: skip

    def images(self, rows: Sequence[int]) -> torch.Tensor:
        """The images of these rows, in [-1, 1]; b 3 r r."""
        return to_float(self.corpus.images[list(rows)].to(self.device))

    def __call__(self) -> None:
        rows = self.sampler(self.number).tolist()
        images = self.images(rows)
        reconstruction, quantizer_loss = self.host(images)[:2]
        loss = F.l1_loss(reconstruction, images) + quantizer_loss
        if self.align is not None:
            loss = loss + self.align(rows)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.number += 1


def start_codebook(host: nn.Module, images: torch.Tensor) -> None:
    """Put the codes on latents of the images."""
    with torch.no_grad():
        tokenizer = tavq.wrap(host, log_summary=False)
        table, latent = tokenizer.adapter.codebook(), tokenizer.encode(images).final.latent
        assert table is not None  # the small VQGAN's
        places = latent.movedim(1, -1).flatten(0, -2)
        table.copy_(places[torch.randint(len(places), (len(table),), device=places.device)])


def measured(steps: Mapping[str, TrainingStep], rounds: int, warmup: int, device: str) -> list[dict[str, Any]]:
    """One row per side: seconds, their ratio to the weighted sum's, and operations."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(warmup + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            took = timed(steps[name], device)
            if number >= warmup:
                seconds[name].append(took)
    base = seconds["weighted sum"]
    rows = []
    for name, times in seconds.items():
        ratios = [own / other for own, other in zip(times, base, strict=True)]
        rows.append(
            {"side": name, **spread("seconds", times), **spread("ratio_to_sum", ratios), **operations(steps[name])}
        )
    return rows


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median and the 10th and 90th of a hundred."""
    ordered, share = sorted(values), len(values) // 10
    return {name: statistics.median(ordered), f"{name}_low": ordered[share], f"{name}_high": ordered[-1 - share]}


def operations(step: TrainingStep) -> dict[str, int]:
    """Numbers of torch operations and of convolutions' backward passes in one step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    counts = {event.key: event.count for event in found.key_averages()}
    return {
        "operations": sum(count for name, count in counts.items() if name.startswith("aten::")),
        "convolution_backwards": counts["aten::convolution_backward"],
    }


def page(result: Mapping[str, Any]) -> str:
    """The table and what it was measured on."""
    head = ["side", "seconds a step", "10–90 %", "over the weighted sum", "10–90 %", "operations", "conv. backwards"]
    rows = [
        [
            row["side"], row["seconds"], f"{row['seconds_low']:.4g}–{row['seconds_high']:.4g}",
            f"{row['ratio_to_sum']:.3f}", f"{row['ratio_to_sum_low']:.3f}–{row['ratio_to_sum_high']:.3f}",
            row["operations"], row["convolution_backwards"],
        ]
        for row in result["sides"]
    ]  # fmt: skip
    where = (
        f"{result['machine']}, {result['threads']} thread, {result['resolution']} px, batch {result['batch_size']}, "
        f"{result['rounds']} rounds; target: balanced at most {result['target']} times the weighted sum\n\n"
    )
    return where + markdown_table(head, rows)


if __name__ == "__main__":
    main()
