"""Sampling from the tasks' models: python benchmarks/task_sampling.py --json OUT.

A causal model draws 256 codes (16 × 16) with the cache of keys and values, and without it, in turns, so that other load
on the machine affects both; ratios are taken within a round. A masked model fills 64 images of 16 × 16 codes in 12
steps in Halton order. Models are those of the tasks (width 128) with random weights, since weights do not change the
time. On a CPU, seconds are the process's CPU time over all threads, and wall-clock seconds are given beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common.machine import machine, versions
from common.result_files import markdown_table, save_results
from common.timing import timed

from tavq_plugin.tasks.causal_model import causal_transformer
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout

SIDE, CODES, CODE_WIDTH = 16, 512, 64
IMAGES, STEPS = 64, 12  # of the masked model
SAME_CODES = 0.8  # rounding may change the likeliest code of one image of eight, and all codes after it
TARGET_RATIO, TARGET_SECONDS = 5.0, 10.0


def main(argv: Sequence[str] | None = None, *, side: int = SIDE, model: ModelSettings | None = None) -> None:
    """Measure, print and write the JSON and the page; tests give `side` and `model`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go; the page is next to it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8, help="images that the causal model draws at once")
    parser.add_argument("--images", type=int, default=IMAGES, help="images that the masked model fills")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device, model = "cuda" if torch.cuda.is_available() else "cpu", model or ModelSettings()
    result: dict[str, Any] = {
        "machine": machine(), "threads": torch.get_num_threads(), "device": device,
        "versions": versions(("torch", "transformers")), "protocol": __doc__, "rounds": arguments.rounds,
        "codes": side * side, "width": model.width, "layers": model.layers,
    }  # fmt: skip
    result["cache"] = cache_against_recomputing(side, arguments.batch, model, arguments.rounds, device)
    result["halton"] = halton_sampling(side, arguments.images, model, arguments.rounds, device)
    page = table(result)
    print(page)
    save_results(arguments.json, result, page)


def cache_against_recomputing(side: int, batch: int, model: ModelSettings, rounds: int, device: str) -> dict[str, Any]:
    """Seconds of drawing side² codes of a batch of images with and without the cache, and their ratios."""
    torch.manual_seed(0)
    net = causal_transformer(CODES + 1, model, longest=side * side + 1).eval().to(device)
    start = torch.full((batch, 1), CODES, device=device)

    def draw(use_cache: bool) -> torch.Tensor:
        return net.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=side * side, do_sample=False,
            use_cache=use_cache,
        )  # fmt: skip

    agreement = (draw(True) == draw(False)).float().mean().item()
    if agreement < SAME_CODES:
        raise RuntimeError(f"only {agreement:.0%} of the codes are the same with and without the cache")
    seconds = in_turns({"cached": lambda: draw(True), "recomputed": lambda: draw(False)}, rounds, device)
    pairs = zip(seconds["recomputed"]["seconds"], seconds["cached"]["seconds"], strict=True)
    ratios = [recomputed / cached for recomputed, cached in pairs]
    return {
        "batch": batch,
        "same_codes": agreement,
        **{name: spread(times) for name, times in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "target_ratio": TARGET_RATIO,
    }


def halton_sampling(side: int, images: int, model: ModelSettings, rounds: int, device: str) -> dict[str, Any]:
    """Seconds of filling images of side × side codes in Halton order."""
    from tavq_plugin.tasks.masked_model import MaskedModel, sample
    from tavq_plugin.tasks.sampling import SamplingSettings

    torch.manual_seed(0)
    layout = TokenLayout((LevelGrid(side, side, CODES),))
    empty = torch.full((images, layout.length), layout.mask)
    net = MaskedModel(CodeSequences(empty, layout, torch.randn(CODES, CODE_WIDTH), "random"), model).eval().to(device)
    settings = SamplingSettings(order="halton", steps=STEPS)
    sample(net, empty, settings)
    seconds = in_turns({"halton": lambda: sample(net, empty, settings)}, rounds, device)
    return {"images": images, "steps": STEPS, **spread(seconds["halton"]), "target_wall_s": TARGET_SECONDS}


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, dict[str, list[float]]]:
    """The seconds and wall-clock seconds of each call, one after the other in each round."""
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "wall_s": []} for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            found[name]["seconds"].append(timed(call, device))
            found[name]["wall_s"].append(time.perf_counter() - began)
    return found


def spread(times: dict[str, list[float]]) -> dict[str, float]:
    """The median, least and greatest of each kind of seconds."""
    return {
        f"{name}_{key}": of(values)
        for name, values in times.items()
        for key, of in (("median", statistics.median), ("low", min), ("high", max))
    }


def table(result: dict[str, Any]) -> str:
    """The page of Markdown."""
    cache, halton = result["cache"], result["halton"]
    names = {
        f"{result['codes']} codes × {cache['batch']} images, cached": cache["cached"],
        f"{result['codes']} codes × {cache['batch']} images, recomputed": cache["recomputed"],
        f"{halton['images']} images of {result['codes']} codes, Halton order, {halton['steps']} steps": halton,
    }
    columns = ("seconds_median", "seconds_low", "seconds_high", "wall_s_median", "wall_s_low", "wall_s_high")
    rows = [[name, *(times[column] for column in columns)] for name, times in names.items()]
    head = ("", "seconds", "least", "most", "wall-clock", "least", "most")
    return (
        "# Sampling from the tasks' models\n\n"
        f"{result['machine']}; {result['threads']} threads on {result['device']}; width {result['width']}, "
        f"{result['layers']} layers; medians of {result['rounds']} rounds.\n\n{markdown_table(head, rows)}\n"
        f"Recomputing takes {cache['ratio']:.2f} × the cache's seconds ({cache['ratio_low']:.2f} … "
        f"{cache['ratio_high']:.2f} within a round); the target is {cache['target_ratio']:.0f} ×. The target in Halton "
        f"order is {halton['target_wall_s']:.0f} wall-clock seconds on two cores.\n"
    )


if __name__ == "__main__":
    main()
