"""What every method does to a host: python benchmarks/pulls.py --json benchmarks/results/pulls.json.

All methods train by one recipe, the shipped `small` at 32 px with fewer steps, on drawn scenes, with the same images in
the same order, on one thread. The host settles without quantization for the first quarter of the run. Figures are taken
at a share of the steps with codes, and after the last step:

- usage: share of the codes that are chosen at least once on a fixed set of training images, %;
- relative quantization error: Σ |z − e|² / Σ |z − z̄|² over the latents z of those images, their codes e and their mean
  z̄; 1 is what one code for everything would give;
- gradient ratio: norm of the gradient that the method's own terms add, over that of the pixels' loss, on the host's
  parameters before the quantizer, for one batch in training mode. Where a method's gradient falls over the run, as
  tavq's does, so does its ratio.

A row is called broken if a figure after the last step is worse than `BROKEN`; inert or weak if its method has loss
terms of its own and a ratio below `INERT` or `WEAK`. "–": the method has no terms, so it acts by moving or computing
the codes, or not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from common.machine import machine, versions
from common.result_files import markdown_table, save_results
from torch import Tensor

from tavq_plugin.data.corpus import Corpus, load_or_build_corpus
from tavq_plugin.evaluation.plan import split_overrides
from tavq_plugin.methods import METHODS
from tavq_plugin.methods.base import Method
from tavq_plugin.pixels import to_float
from tavq_plugin.training.loop import TrainingLoop
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import read_recipe

RECIPE = (
    "resolution=32",
    "steps=80",
    "batch_size=8",
    "start.settle_share=0.25",
    "tracker=none",
    "diagnose_every=0",
    "seed=0",
)
BROKEN = {"usage": 5.0, "error": 0.9}  # less usage, %, or a greater error
INERT, WEAK = 1e-3, 5e-2  # a smaller gradient ratio
HEAD = (
    "method", "usage, %", "error", "gradient ratio", "usage at the end, %", "error at the end", "seconds", "verdict"
)  # fmt: skip


def main(
    argv: Sequence[str] | None = None,
    *,
    recipe: Recipe | None = None,
    corpus: Corpus | None = None,
    options: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Train, measure, print and write; tests give a recipe, a corpus and options of methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--methods", default="all", help="names separated by commas")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of the recipe, or METHOD.options.NAME=VALUE"
    )
    parser.add_argument("--images", type=int, default=400, help="drawn scenes to train on")
    parser.add_argument("--share", type=float, default=0.25, help="of the steps with codes, where figures are taken")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    shared, own = split_overrides(arguments.set)
    recipe, options = recipe or read_recipe("small", [*RECIPE, *shared]), {**own, **(options or {})}
    names = list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    with tempfile.TemporaryDirectory() as folder:
        if corpus is None:
            sizes = {"n_train": arguments.images, "n_eval": 2}
            corpus, _ = load_or_build_corpus(Path(folder), None, recipe.resolution, **sizes, tell=print)
        rows = []
        for name in names:
            asked = replace(recipe, method=name, options=options.get(name, {}))
            rows.append(measured(asked, corpus, share=arguments.share))
            print(markdown_table(HEAD, [list(rows[-1].values())]).splitlines()[-1], flush=True)
    result = {
        "protocol": {"machine": machine(), "threads": 1, "versions": versions(("torch",)), "text": __doc__,
                     "images": corpus.n_train, "share": arguments.share, "recipe": recipe.to_dict()},
        "methods": rows,
    }  # fmt: skip
    save_results(arguments.json, result, page(result))


def measured(recipe: Recipe, corpus: Corpus, *, share: float) -> dict[str, Any]:
    """A method's row: its figures at a share of the steps with codes, and at the end."""
    began = time.process_time()
    with torch.random.fork_rng():
        loop = TrainingLoop(recipe, corpus, Accelerator(cpu=True))
        try:
            at = recipe.settled + max(1, round(share * (recipe.steps - recipe.settled)))
            while loop.number < at:
                loop.step(read=False)
            early, ratio = codes_in_use(loop), gradient_ratio(loop)
            while loop.number < recipe.steps:
                loop.step(read=False)
            late = codes_in_use(loop)
        finally:
            loop.close()
    figures = {"method": recipe.method, **early, "ratio": ratio}
    figures |= {f"{name}_at_end": value for name, value in late.items()}
    return {**figures, "seconds": time.process_time() - began, "verdict": verdict(late, ratio)}


def verdict(late: dict[str, float], ratio: float | None) -> str:
    """What a row's figures say, in one word.

    >>> verdict({"usage": 80.0, "error": 0.2}, 0.1), verdict({"usage": 80.0, "error": 1.2}, None)
    ('works', 'broken')
    """
    if late["usage"] < BROKEN["usage"] or not late["error"] <= BROKEN["error"]:
        return "broken"
    if ratio is None or ratio >= WEAK:
        return "works"
    return "inert" if ratio < INERT else "weak"


@torch.no_grad()
def codes_in_use(loop: TrainingLoop, images: int = 256) -> dict[str, float]:
    """Usage of the codebook, %, and the relative quantization error, on the first training images."""
    host = loop.tokenizer.host.eval()
    final = loop.tokenizer.encode(to_float(loop.corpus.images[: min(images, loop.corpus.n_train)])).final
    host.train()
    codebook = loop.tokenizer.adapter.codebook()
    assert codebook is not None  # the small VQGAN's
    latent = final.latent.movedim(1, -1).flatten(0, -2)
    codes = final.quantized.movedim(1, -1).flatten(0, -2)
    error = (latent - codes).square().sum() / (latent - latent.mean(0)).square().sum()
    return {"usage": 100 * len(final.indices.unique()) / len(codebook), "error": error.item()}


def gradient_ratio(loop: TrainingLoop) -> float | None:
    """Norm of what the method's terms add to the gradient before the quantizer, over that of the pixels' loss."""
    rows = torch.arange(min(loop.recipe.batch_size, loop.corpus.n_train))
    images, module, method = to_float(loop.corpus.images[rows]), loop.module, loop.method
    before = [p for p in loop.tokenizer.host.parameters() if p.requires_grad]
    on_copies, loop.tokenizer.on_copies = loop.tokenizer.on_copies, False
    latent = loop.tokenizer(images)[1].final.latent
    reached = torch.autograd.grad(latent.sum(), before, allow_unused=True)
    before = [p for p, gradient in zip(before, reached, strict=True) if gradient is not None]

    def gradients(names: Sequence[str] | None) -> tuple[Tensor, list[str]]:
        """The gradient of some terms, or of all, before the quantizer, in one vector; and the terms' names."""
        _, terms = module(rows, images, loop.number, False)
        sum(value for name, value in terms.items() if names is None or name in names).backward()
        found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in before])
        loop.optimizer.zero_grad()
        loop.module.zero_grad()
        return found.clone(), list(terms)

    loop.tokenizer.on_copies = on_copies
    whole, with_method = gradients(None)
    module.method = Method(loop.tokenizer, loop.corpus)  # adds nothing
    without, own = gradients(None)
    pixels, _ = gradients(("pixel", "perceptual"))
    module.method = method
    if len(with_method) == len(own):
        return None
    return ((whole - without).norm() / pixels.norm()).item()


def page(result: dict[str, Any]) -> str:
    """The table with its protocol."""
    protocol, rows = result["protocol"], result["methods"]
    recipe = protocol["recipe"]
    lines = [
        "# What every method does to a host", "",
        f"{protocol['machine']}, one thread. {protocol['images']} drawn scenes of {recipe['resolution']} px, "
        f"{recipe['steps']} steps of {recipe['batch_size']} images, one seed; the first three figures are taken after "
        f"{protocol['share']:.0%} of the steps with codes.", "",
        markdown_table(HEAD, [list(row.values()) for row in rows]),
        protocol["text"].partition("\n\n")[2].strip(), "",
        f"`BROKEN` is a usage below {BROKEN['usage']:g} % or an error above {BROKEN['error']:g}; `INERT` is a ratio "
        f"below {INERT:g}, `WEAK` one below {WEAK:g}. " + said_of(rows), "",
    ]  # fmt: skip
    return "\n".join(lines)


def said_of(rows: Sequence[dict[str, Any]]) -> str:
    """Which rows are broken, inert or weak, in one sentence.

    >>> said_of([{"method": "vqgan", "verdict": "works"}])
    'No row is broken, inert or weak.'
    """
    wrong = [f"{row['method']} is {row['verdict']}" for row in rows if row["verdict"] != "works"]
    return f"{'; '.join(wrong)}." if wrong else "No row is broken, inert or weak."


if __name__ == "__main__":
    main()
