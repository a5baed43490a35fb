"""Train the VQGAN that ships with the package, which `tavq demo` starts from: python benchmarks/demo_vqgan.py.

It draws the scenes, trains by the recipe `tavq_plugin/training/packaged/demo_vqgan.yaml`, and prints the PSNR on scenes
that it was not trained on, and the hash that `tavq_plugin/training/demo_recipe.py` must name. Give the same command
again to resume it. The weights differ in their last digits from one machine to another, and so does the hash.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from common.machine import machine

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.evaluation.metrics.image import psnr
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.pixels import to_float
from tavq_plugin.text.encoder import offline_encoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.training import fit
from tavq_plugin.training.demo_recipe import PACKAGED_RECIPE
from tavq_plugin.training.recipe_yaml import read_recipe

SCENES_SEED = 1  # the demo's scenes have seed 0, so none of its images are seen here
TRAIN, HELD_OUT = 3000, 300


def scenes_without_text(n_train: int, n_held_out: int, resolution: int) -> Corpus:
    """Drawn scenes for a host without text: all share one word, so that nothing is encoded."""
    images = scenes(n_train + n_held_out, seed=SCENES_SEED, resolution=resolution).images
    texts = ["scene"] * len(images)
    return Corpus("scenes", images, texts, TextStore.build(texts, offline_encoder()), n_train)


@torch.no_grad()
def held_out_psnr(tokenizer: Tokenizer, corpus: Corpus) -> float:
    """Mean PSNR of the held-out images, in dB."""
    parts = [to_float(part) for part in corpus.images[corpus.n_train :].split(50)]
    return torch.cat([psnr(tokenizer.decode(tokenizer.encode(part)), part) for part in parts]).mean().item()


def main(arguments: Sequence[str] | None = None, *, held_out: int = HELD_OUT) -> None:
    """Train, or resume, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-vqgan"), help="folder of the run")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: the recipe's")
    parser.add_argument("--scenes", type=int, default=TRAIN, help="training scenes")
    args = parser.parse_args(arguments)
    recipe = read_recipe(PACKAGED_RECIPE, [f"steps={args.steps}"] if args.steps else [])
    corpus = scenes_without_text(args.scenes, held_out, recipe.resolution)

    def show(done: int, row: dict[str, float]) -> None:
        if done % 50 == 0 or done == recipe.steps:
            print(f"{done} of {recipe.steps}: pixel loss {row['pixel']:.4f}, {row['seconds']:.2f} s a step", flush=True)

    run = fit("vqgan", recipe, corpus, args.out, progress=show)
    file = args.out / "host.safetensors"
    print(machine())
    print(f"PSNR {held_out_psnr(run.tokenizer, corpus):.2f} dB on {held_out} other scenes")
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, sha256 {sha256_of(file)}")


if __name__ == "__main__":
    main()
