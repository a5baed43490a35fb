"""How much longer a training step with tavq takes than vqgan's: python benchmarks/overhead.py --corpus DATA --json OUT.

Both methods run the reference trainer's own loop on one corpus: the folder `data` of any `tavq compare`, with images
resized if a case asks for another size. Codebooks start on latents, so that their codes are in use. The steps of the
two are timed in turns, so that other load on the machine affects both, after a warm-up in which every shape occurs.
Results are medians over rounds; ratios are taken within a round. On a CPU, seconds are the process's CPU time; on a
GPU, a step is timed from an idle device to an idle device.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common.machine import machine, versions
from common.result_files import save_results
from common.timing import timed

from tavq_plugin.data.corpus import Corpus, load_corpus
from tavq_plugin.training.loop import TrainingLoop
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import read_recipe

METHODS = ("vqgan", "tavq")
CASES = {
    "small 64 px": ("small", ["resolution=64"]),
    "small 128 px": ("small", ["resolution=128"]),
    "f16 128 px": ("celebahq", ["resolution=128", "batch_size=32"]),
    "f16 128 px, bf16": ("celebahq", ["resolution=128", "batch_size=32", "precision=bf16"]),
    "f16 256 px, bf16": ("celebahq", ["resolution=256", "batch_size=32", "precision=bf16"]),
}
PLAIN = (
    "perceptual.kind=none",
    "adversarial.weight=0",
    "start.settle_share=0",
    "start.revive_every=10",
    "tracker=none",
)


def main(
    argv: Sequence[str] | None = None,
    *,
    cases: Mapping[str, tuple[str, list[str]]] = CASES,
    load: Callable[[Path], Corpus] = load_corpus,
) -> None:
    """Measure, print and write the JSON; tests give `cases` and `load`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="the folder data of a comparison")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--cases", default="small 64 px", help=f"some of {'; '.join(cases)}, with semicolons between")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5, help="rounds before the first that counts")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    whole = load(arguments.corpus)
    result: dict[str, Any] = {
        "machine": machine(), "threads": 1, "versions": versions(), "corpus": whole.name, "protocol": __doc__,
        "cases": {},
    }  # fmt: skip
    for name in arguments.cases.split(";"):
        recipe_name, changes = cases[name.strip()]
        recipe = read_recipe(recipe_name, [*PLAIN, *changes])
        found = measured(recipe, resized(whole, recipe.resolution), arguments.rounds, arguments.warmup)
        result["cases"][name.strip()] = found
        save_results(arguments.json, result)
        shown = ", ".join(f"{key} {found[key]:.4g}" for key in ("vqgan", "tavq", "ratio", "ratio_low", "ratio_high"))
        print(f"{name.strip()}: {shown}", flush=True)


def resized(corpus: Corpus, side: int, at_most: int = 512) -> Corpus:
    """The first training images of the corpus, resized to a side."""
    images = corpus.images[: min(at_most, corpus.n_train)]
    if images.shape[-1] != side:
        images = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True).round().to(torch.uint8)
    store = corpus.store.subset(range(len(images)))
    return replace(corpus, images=images, texts=corpus.texts[: len(images)], store=store, n_train=len(images))


def measured(recipe: Recipe, corpus: Corpus, rounds: int, warmup: int) -> dict[str, Any]:
    """Seconds per step of both methods, and their ratios."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    loops = {name: TrainingLoop(replace(recipe, method=name), corpus, accelerator) for name in METHODS}
    for loop in loops.values():
        loop.codebook.start(corpus)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(warmup + rounds):
        for name, loop in loops.items():
            took = timed(loop.step, accelerator.device.type)
            if number >= warmup:
                seconds[name].append(took)
    ratios = sorted(b / a for a, b in zip(*(seconds[name] for name in METHODS), strict=True))
    share = len(ratios) // 10
    return {
        **{name: statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(ratios), "ratio_low": ratios[share], "ratio_high": ratios[-1 - share],
        "ratio_of_medians": statistics.median(seconds["tavq"]) / statistics.median(seconds["vqgan"]),
        "device": str(accelerator.device), "rounds": rounds, "batch_size": recipe.batch_size,
        "resolution": recipe.resolution, "precision": recipe.precision,
        "parameters": sum(p.numel() for p in loops["vqgan"].tokenizer.host.parameters()),
        "spread": "the 10th and 90th of a hundred ratios",
    }  # fmt: skip


if __name__ == "__main__":
    main()
