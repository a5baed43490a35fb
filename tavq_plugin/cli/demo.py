"""`tavq demo`: one tokenizer trained three times from one seed, without alignment, with it, with shuffled texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.images import load_images
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.evaluation.probes import PENALTY
from tavq_plugin.evaluation.report.pictures import reconstruction_grid, word_regions
from tavq_plugin.evaluation.text_targets import Encoded, TextTargets, encode, score, text_targets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import save_json, writable
from tavq_plugin.io.ownership import claim
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.base import Method
from tavq_plugin.methods.tavq import CONTRAST, LEVEL_WEIGHTS
from tavq_plugin.pixels import to_float
from tavq_plugin.text.encoder import TextEncoder, offline_encoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.training import Fitted, Recipe, fit
from tavq_plugin.training.build import build
from tavq_plugin.training.recipe_yaml import read_recipe
from tavq_plugin.training.run_folder import (
    MAKER,
    clear_hand,
    former_hand,
    former_run,
    in_hand,
    load_metrics,
    load_run,
    refuse_unlike_hand,
    refuse_unlike_run,
    save_run,
)

SCENES_WEIGHT = 0.03  # λ on drawn scenes: in their 200 steps with codes, .1 cost .36 dB (32 px, seed 0)
SCENES = 2000  # that train
RUNS = {"baseline": "vqgan", "tavq": "tavq", "shuffled": "tavq-shuffled"}  # and the method of each
FILES = ("demo.json", "reconstructions.png", "words.png")
NAMES = (*FILES, ".training/", *(f"{name}/" for name in RUNS), *(f".{name}.partial/" for name in RUNS))
"""What the demo writes into its folder, and replaces there."""


def demo_recipe(*, resolution: int, steps: int, seed: int) -> Recipe:
    """What all runs share: the recipe `small`, with one checkpoint, at half.

    The host learns through the added levels in the baseline too, so that runs differ by their alignment alone.
    """
    changed = [f"resolution={resolution}", f"steps={steps}", f"seed={seed}"]
    changed += ["host.wrap.detach_added_levels=false", f"host.wrap.max_grid={max(16, resolution // 2)}"]
    return read_recipe("small", [*changed, f"checkpoint_every={(steps + 1) // 2}", "tracker=none"])


def run_demo(
    *, data: Path | None, recipe: Recipe, weight: float, out: Path, n_train: int, n_eval: int, console: Console
) -> dict[str, Any]:
    """Train, evaluate and draw; what was finished with the same settings is kept. Returns what `demo.json` holds."""
    writable(out)
    claim(out, NAMES, MAKER, former=_former(out))
    encoder = offline_encoder()
    corpus = _corpus(data, recipe.resolution, encoder, n_train=n_train, n_eval=n_eval, console=console)
    targets = text_targets(corpus.store, corpus.train_rows, corpus.held_out_rows)
    options = {"weight": weight, "weight_end": 0.0, **_alignment(recipe.resolution)}
    protocol = _protocol(corpus, recipe, options, encoder)
    content: dict[str, Any] = {"protocol": protocol, "runs": {}}
    shown: dict[str, tuple[Tokenizer, TextAlignment | None]] = {}
    _refuse_unlike_runs(out, protocol)
    for name, method in RUNS.items():
        own = replace(recipe, method=method, options={} if name == "baseline" else options)
        tokenizer, align, metrics = _one_run(name, own, corpus, targets, protocol, out, console)
        shown[name] = tokenizer, align
        content["runs"][name] = metrics
        save_json(out / "demo.json", content)
    _draw(shown, corpus, out)
    return content


def _former(out: Path) -> list[str]:
    """What a demo left in its folder before there were markers."""
    try:
        content = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    files = FILES if isinstance(content, dict) and {"protocol", "runs"} <= content.keys() else ()
    runs = [f"{name}/" for name in RUNS if former_run(out / name)]
    partial = [f".{name}.partial/" for name in RUNS if former_run(out / f".{name}.partial")]
    return [*files, *runs, *partial, *([".training/"] if former_hand(out / ".training") else [])]


def _refuse_unlike_runs(out: Path, protocol: dict[str, Any]) -> None:
    """FileExistsError, before anything is trained, where a folder to be replaced holds something that is not ours."""
    refuse_unlike_hand(out / ".training")
    for name in RUNS:
        refuse_unlike_run(out / f".{name}.partial")
        if load_metrics(out / name, {"run": name, **protocol}) is None:
            refuse_unlike_run(out / name)


def _corpus(
    data: Path | None, resolution: int, encoder: TextEncoder, *, n_train: int, n_eval: int, console: Console
) -> Corpus:
    """Scenes where `data` is None, else the folder's images and texts."""
    if data is None:
        name = "scenes"
        images, texts, _ = scenes(n_train + n_eval, seed=0, resolution=resolution)
    else:
        taught, held_out = ImageTextFolder.read(data).split(n_train=n_train, n_eval=n_eval)
        records, name, n_train = [*taught, *held_out], str(data), len(taught)
        images, texts = load_images([record.image for record in records], resolution), [r.text for r in records]
        if empty := sum(not text.strip() for text in texts):
            console.print(f"{empty} of {len(texts)} images have no text: kept, with zero alignment")
    store = TextStore.build(texts, encoder, centre_on=range(n_train))
    return Corpus(name, images, texts, store, n_train)


def _alignment(resolution: int) -> dict[str, Any]:
    """The alignment's settings; below 64 px the host is light: so are the heads, and every third step is aligned."""
    light = {"hidden": 128, "every": 3} if resolution < 64 else {"hidden": None, "every": 1}
    return {"level_weights": list(LEVEL_WEIGHTS), "contrast": CONTRAST, **light}


def _one_run(
    name: str,
    recipe: Recipe,
    corpus: Corpus,
    targets: TextTargets,
    protocol: dict[str, Any],
    out: Path,
    console: Console,
) -> tuple[Tokenizer, TextAlignment | None, dict[str, Any]]:
    folder, settings = out / name, {"run": name, **protocol}
    metrics = load_metrics(folder, settings)
    if metrics is not None:
        console.print(f"{name}: kept from {folder}, finished with these settings")
        tokenizer, method = build(recipe, corpus)
        load_run(folder, tokenizer, _align_of(method))
        del metrics["history"]
        return tokenizer, _align_of(method), metrics
    training = in_hand(out / ".training", settings)
    fitted = _fitted(name, recipe, corpus, training, console)
    tokenizer, align = fitted.tokenizer, _align_of(fitted.method)
    encoded = _encoded(tokenizer, align, corpus)
    metrics = score(*encoded, targets, codebook_size=len(tokenizer.adapter.codebook()))
    metrics |= {"seconds_per_step": fitted.seconds_per_step, "plugin_share": fitted.plugin_share}
    learnt = set().union(*fitted.history)
    history = [dict.fromkeys({"level", "alignment"} - learnt, 0.0) | row for row in fitted.history]
    save_run(folder, tokenizer, align, settings, metrics | {"history": history})
    clear_hand(training)
    return tokenizer, align, metrics


def _fitted(name: str, recipe: Recipe, corpus: Corpus, folder: Path, console: Console) -> Fitted:
    """The trained run, on the CPU."""
    with _progress(console) as progress:
        task = progress.add_task(f"{name:9}", total=recipe.steps)
        fitted = fit(
            recipe.method, recipe, corpus, folder, progress=lambda done, row: progress.update(task, completed=done)
        )
        progress.update(task, completed=recipe.steps)
    fitted.tokenizer.cpu()
    fitted.method.cpu()
    return fitted


def _align_of(method: Method) -> TextAlignment | None:
    return getattr(method, "align", None)


def _encoded(tokenizer: Tokenizer, align: TextAlignment | None, corpus: Corpus) -> tuple[Encoded, Encoded]:
    size = 50
    held_out = list(corpus.held_out_rows)
    texts = [corpus.store.batch(held_out[i : i + size]) for i in range(0, len(held_out), size)]
    return (
        encode(tokenizer, corpus.images[: corpus.n_train], batch_size=size),
        encode(
            tokenizer, corpus.images[corpus.n_train :], align=align, texts=texts, reconstruct=True, batch_size=size
        ),
    )  # fmt: skip


def _protocol(corpus: Corpus, recipe: Recipe, options: dict[str, Any], encoder: TextEncoder) -> dict[str, Any]:
    packages = ("tavq-plugin", "torch", "accelerate", "transformers", "taming-transformers-rom1504", "torchmetrics")
    optimizer = recipe.optimizer
    return {
        **{
            name: getattr(recipe, name)
            for name in ("steps", "batch_size", "codebook_loss_weight", "seed", "resolution")
        },
        **{name: getattr(optimizer, name) for name in ("learning_rate", "warmup")},
        **asdict(recipe.start),
        "beta2": optimizer.betas[1],
        "head_rate": optimizer.method_rate,
        "weight": options["weight"],
        "weight_end": options["weight_end"],
        "data": corpus.name,
        "n_train": corpus.n_train,
        "n_eval": len(corpus.held_out_rows),
        "alignment": _alignment(recipe.resolution),
        "encoder": encoder.fingerprint,
        "probe": f"ridge on standardised mean-pooled quantized codes, penalty {PENALTY:g}, fitted on training rows",
        "retrieval": "image→text among the held-out pairs, percent; mean unit embedding, both sides centred",
        "word_map": "mean average precision over the 100 most frequent words of the training texts, percent",
        "psnr": "dB a held-out image, clamped and rounded to 8 bit, mean; 512-code level that the decoder reads",
        "spread": "one seed a call: run --seed 0, 1, 2 for a spread over seeds; psnr_standard_error is over images",
        "chance": {f"r{k}": min(100.0, 100 * k / len(corpus.held_out_rows)) for k in (1, 10, 50)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


@torch.no_grad()
def _draw(shown: dict[str, tuple[Tokenizer, TextAlignment | None]], corpus: Corpus, out: Path) -> None:
    rows = list(corpus.held_out_rows)[:8]
    images = to_float(corpus.images[rows])
    grid = {"image": images}
    for name, (tokenizer, _) in shown.items():
        tokenizer.eval()
        grid[name] = tokenizer.decode(tokenizer.encode(images))
    reconstruction_grid(grid, out / "reconstructions.png")

    tokenizer, align = shown["tavq"]
    rows, images, granularity = rows[:4], images[:4], align.levels[0]
    fine = tokenizer.encode(images).levels[0].quantized
    plan = align.match(fine, corpus.store.batch(rows)[granularity], 0).plan()
    words, maps = [], []
    for i, row in enumerate(rows):
        units = corpus.store.units(row, granularity)
        mass = rearrange(plan[i, :, : len(units)], "(h w) m -> m h w", h=fine.shape[2])
        contrast = (mass.flatten(1).std(1) / mass.flatten(1).mean(1)).argsort(descending=True)[:5].tolist()
        words.append([units[j] for j in contrast])
        maps.append(mass[contrast])
    word_regions(images, words, maps, out / "words.png", title="where the transport plan sends a word (level 1)")


def table(content: dict[str, Any]) -> Table:
    """The runs beside each other, the headline first."""
    protocol, levels = content["protocol"], ("level1", "level2", "level3")
    made = Table(
        title=f"{protocol['data']}, {protocol['resolution']} px, {protocol['steps']} steps, seed {protocol['seed']}: "
        f"{protocol['n_train']} train, {protocol['n_eval']} held out"
    )
    made.add_column("", no_wrap=True)
    for name in content["runs"]:
        made.add_column(name, justify="right", no_wrap=True)

    def row(label: str, read: Callable[[dict], Any]) -> None:
        cells = []
        for run in content["runs"].values():
            value = read(run)
            cells.append("–" if value is None else value if isinstance(value, str) else f"{value:.2f}")
        made.add_row(label, *cells)

    def three(values: Sequence[float | None]) -> str | None:
        return None if None in values else " ".join(f"{value:.1f}" for value in values)

    chance = protocol["chance"]
    row("word mAP, fitted", lambda run: sum(run["word_map"].values()) / 3)
    row("  level 1 2 3", lambda run: three([run["word_map"][level] for level in levels]))
    row(
        f"R@50, fitted (chance {chance['r50']:.0f})",
        lambda run: sum(run["retrieval_fitted"][level]["r50"] for level in levels) / 3,
    )
    row("  level 1 2 3", lambda run: three([run["retrieval_fitted"][level]["r50"] for level in levels]))
    for key in ("r10", "r50"):
        row(
            f"R@{key[1:]}, own head (chance {chance[key]:.0f})",
            lambda run, key=key: run["retrieval"] and three([run["retrieval"][level][key] for level in levels]),
        )
    row("PSNR, dB", lambda run: f"{run['psnr']:.2f} ± {run['psnr_standard_error']:.2f}")
    row("codebook usage, %", lambda run: run["usage"])
    row("perplexity", lambda run: run["perplexity"])
    row(
        "plan entropy / max",
        lambda run: None if None in run["plan_entropy"] else " ".join(f"{v:.2f}" for v in run["plan_entropy"]),
    )
    row("seconds a step", lambda run: f"{run['seconds_per_step']:.3f}")
    row("plug-in, % of step", lambda run: 100 * run["plugin_share"])
    return made


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
