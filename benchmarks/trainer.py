"""Images a second of the reference trainer, beside diffusers' training script: python benchmarks/trainer.py --json OUT.

Every side trains the same host (the demo's VQGAN) from the same weights on the same drawn scenes:

- "ours": the trainer's own loop; images stay on the device, and losses are read once in a turn;
- "ours, read every step": the same with each batch copied and each step's losses read, as until November 2026;
- "diffusers": the steps of `examples/vqgan/train_vqgan.py` in huggingface/diffusers (086bf95), with its defaults:
  AdamW, clipped gradients, a loader without workers that decodes and converts pictures one by one.

With a discriminator, our step trains both networks on each batch, and the script trains one of the two on each, in
turns, with a gradient penalty. Both have the same discriminator. No side has a perceptual loss, as its network takes
the same time everywhere. Turns of a few batches are interleaved, in another order each round, so that other load on the
machine affects all sides. Results are medians over rounds with the least and the greatest; ratios are taken within a
round. On a CPU, seconds are the process's CPU time on one thread; on a GPU, from an idle device to an idle device.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common.machine import machine, this_machine, versions
from common.result_files import markdown_table, save_results
from common.timing import timed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.text.store import TextStore
from tavq_plugin.training.adversarial import PatchGAN
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.loop import TrainingLoop
from tavq_plugin.training.recipe import Recipe
from tavq_plugin.training.recipe_yaml import read_recipe

PLAIN = ("tracker=none", "start.settle_share=0", "start.revive_every=0", "steps=1000000", "optimizer.warmup=0")
JUDGED = ("adversarial.weight=0.8", "adversarial.start=0")
CASES: dict[str, tuple[str, ...]] = {
    "64 px": ("resolution=64",),
    "64 px, discriminator": ("resolution=64", *JUDGED),
    "128 px": ("resolution=128",),
    "128 px, discriminator": ("resolution=128", *JUDGED),
}
OURS, EVERY, THEIRS = "ours", "ours, read every step", "diffusers"
Turn = Callable[[], None]


class NoWords:
    """An encoder of texts that nobody reads here."""

    dim, fingerprint = 2, "none"

    class stats:
        split = 0

    def encode(self, texts: Sequence[str], progress: object = None) -> Tensor:
        return torch.ones(len(texts), 2)


def drawn_corpus(images: int, resolution: int) -> Corpus:
    """Drawn scenes, all but two of them for training."""
    pictures, texts, _ = scenes(images, seed=0, resolution=resolution)
    store = TextStore.build(["a thing"] * images, NoWords())
    return Corpus("scenes", pictures, texts, store, images - 2)


def our_turn(recipe: Recipe, corpus: Corpus, accelerator: Accelerator, steps: int, *, read_every: bool) -> Turn:
    """Some steps of the trainer's loop."""
    if read_every:
        recipe = replace(recipe, images_on_gpu=0.0)
    loop = TrainingLoop(recipe, corpus, accelerator)

    def turn() -> None:
        for number in range(steps):
            loop.step(read=read_every or number == steps - 1)

    return turn


def their_turn(recipe: Recipe, corpus: Corpus, accelerator: Accelerator, steps: int) -> Turn:
    """Some steps of diffusers' script, one batch each."""
    torch.manual_seed(recipe.seed)
    model = build_host(recipe.host, recipe.resolution).train()
    critic = PatchGAN(layers=recipe.adversarial.layers, width=recipe.adversarial.width)
    settings = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}
    optimizer, critic_optimizer = (torch.optim.AdamW(net.parameters(), **settings) for net in (model, critic))
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda _: 1.0) for each in (optimizer, critic_optimizer)]
    model, critic, optimizer, critic_optimizer, schedule, critic_schedule = accelerator.prepare(
        model, critic, optimizer, critic_optimizer, *schedules
    )
    batches = their_batches(corpus, recipe)
    judged = recipe.adversarial.weight > 0
    half = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    done = 0

    def generator_step(pixels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with accelerator.accumulate(model):
            with half:
                reconstruction, commitment = model(pixels)[:2]
                loss = own = F.mse_loss(reconstruction.float(), pixels)
                if judged:
                    judgement = -critic(reconstruction).float().mean()
                    last = accelerator.unwrap_model(model).decoder.conv_out.weight
                    norms = [
                        torch.autograd.grad(part, last, retain_graph=True)[0].norm(p=2) for part in (own, judgement)
                    ]
                    loss = loss + (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=1e4).detach() * judgement
                loss = loss + commitment
            mean = accelerator.gather(loss.detach().repeat(len(pixels))).float().mean()
            update(loss, model, optimizer, schedule)
        return mean

    def critic_step(pixels: Tensor) -> Tensor:
        critic_optimizer.zero_grad(set_to_none=True)
        with half:
            reconstruction = model(pixels)[0].detach()  # with its graph, as in the script
        with accelerator.accumulate(critic):
            pixels.requires_grad_()
            with half:
                real, fake = critic(pixels).float(), critic(reconstruction).float()
                loss = (F.relu(1 + fake) + F.relu(1 - real)).mean()
                grads = torch.autograd.grad(real.sum(), pixels, create_graph=True)[0].flatten(1)
            loss = loss + 10 * ((grads.norm(2, dim=1) - 1) ** 2).mean()
            mean = accelerator.gather(loss.detach().repeat(len(pixels))).mean()
            update(loss, critic, critic_optimizer, critic_schedule)
        return mean

    def update(loss: Tensor, net: nn.Module, adam: Any, rates: Any) -> None:
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        rates.step()

    def turn() -> None:
        nonlocal done
        for _ in range(steps):
            pixels = next(batches).to(accelerator.device, non_blocking=True)
            mean = critic_step(pixels) if judged and done % 2 else generator_step(pixels)
            done += 1
        mean.item()  # the script logs every 50 steps

    return turn


def their_batches(corpus: Corpus, recipe: Recipe) -> Iterator[Tensor]:
    """Batches of the script's loader, b 3 r r in [0, 1], without an end."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in corpus.images[: corpus.n_train]]
    side = recipe.resolution

    def converted(picture: Image.Image) -> Tensor:
        resized = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        left, top = torch.randint(0, 1, (2,)).tolist()  # the random crop, of a picture of just this size
        cropped = resized.crop((left, top, left + side, top + side))
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).float() / 255

    loader = DataLoader(
        pictures, batch_size=recipe.batch_size, shuffle=True, drop_last=True,
        collate_fn=lambda batch: torch.stack([converted(picture) for picture in batch]).contiguous(),
    )  # fmt: skip
    while True:
        yield from loader


def measured(recipe: Recipe, corpus: Corpus, *, rounds: int, warmup: int, steps: int) -> list[dict[str, Any]]:
    """One row per side: images a second, and their ratio to the script's."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    turns = {
        OURS: our_turn(recipe, corpus, accelerator, steps, read_every=False),
        EVERY: our_turn(recipe, corpus, accelerator, steps, read_every=True),
        THEIRS: their_turn(replace(recipe, compile="no"), corpus, accelerator, steps),
    }
    names, rates = list(turns), {name: list[float]() for name in turns}
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = timed(turns[name], accelerator.device.type)
            if number >= warmup:
                rates[name].append(steps * recipe.batch_size / seconds)
    return [
        {"side": name, **spread("images_per_second", own), **spread("over_diffusers", ratios(own, rates[THEIRS])),
         **spread("over_read_every_step", ratios(own, rates[EVERY]))}
        for name, own in rates.items()
    ]  # fmt: skip


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median, the least and the greatest."""
    return {name: statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}


def page(content: Mapping[str, Any]) -> str:
    """The tables and what they were measured on."""
    head = ["case", "side", "images a second", "range", "over diffusers", "range", "over reading every step", "range"]
    rows = []
    for case, sides in content["cases"].items():
        for side in sides:
            figures = [
                text
                for key, digits in (("images_per_second", 1), ("over_diffusers", 2), ("over_read_every_step", 2))
                for text in (
                    f"{side[key]:.{digits}f}", f"{side[f'{key}_low']:.{digits}f}–{side[f'{key}_high']:.{digits}f}"
                )
            ]  # fmt: skip
            rows.append([case, side["side"], *figures])
    where = (
        f"{content['machine']} ({content['machine_name']}), {content['threads']} thread, on {content['device']}; batch "
        f"{content['batch_size']}, precision {content['precision']}, compile {content['compile']}, {content['rounds']} "
        f"rounds of {content['steps']} batches a side. {content['note']}"
    )
    return (
        f"# The reference trainer\n\n{where.strip()}\n\n{content['protocol'].strip()}\n\n{markdown_table(head, rows)}"
    )


def main(argv: Sequence[str] | None = None, *, cases: Mapping[str, Sequence[str]] = CASES, images: int = 256) -> None:
    """Measure, print and write the JSON and the page; tests give `cases` and `images`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go; the page is next to it")
    parser.add_argument("--cases", default=";".join(cases), help="some of the cases, with semicolons between")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2, help="rounds before the first that counts")
    parser.add_argument("--steps", type=int, default=10, help="batches of a side in a round")
    parser.add_argument("--batch", type=int, default=16, help="images of a batch")
    parser.add_argument("--precision", default="no", help='"no" or "bf16", for all sides')
    parser.add_argument("--compile", default="no", help='"no" or a backend of torch.compile, for our sides')
    parser.add_argument("--note", default="", help="a line about the machine for the page")
    parser.add_argument("--quick", action="store_true", help="64 px alone, 5 rounds of 2 batches after 1")
    arguments = parser.parse_args(argv)
    names = [name.strip() for name in arguments.cases.split(";")]
    rounds, warmup, steps = arguments.rounds, arguments.warmup, arguments.steps
    if arguments.quick:
        rounds, warmup, steps = 5, 1, 2
        names = [name for name in names if "128" not in name]
    torch.set_num_threads(1)
    content: dict[str, Any] = {
        "machine": machine(), "machine_name": this_machine().short_name, "threads": 1,
        "device": "cuda" if torch.cuda.is_available() else "cpu", "versions": versions(("torch", "accelerate")),
        "batch_size": arguments.batch, "precision": arguments.precision, "compile": arguments.compile,
        "rounds": rounds, "warmup": warmup, "steps": steps, "note": arguments.note, "protocol": __doc__, "cases": {},
    }  # fmt: skip
    for name in names:
        settings = [f"batch_size={arguments.batch}", f"precision={arguments.precision}", f"compile={arguments.compile}"]
        recipe = read_recipe("small", [*PLAIN, *settings, *cases[name]])
        corpus = drawn_corpus(images, recipe.resolution)
        content["cases"][name] = measured(recipe, corpus, rounds=rounds, warmup=warmup, steps=steps)
        save_results(arguments.json, content, page(content))
    print(page(content))


if __name__ == "__main__":
    main()
