"""`tavq demo`: train one tokenizer three times from one seed: without alignment, with it, and with shuffled texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from rich.console import Console
from torch import Tensor

from tavq_plugin.cli.demo_floors import demo_floors, stored_codes
from tavq_plugin.cli.demo_folder import (
    MAKER,
    load_metrics,
    open_unfinished,
    refuse_foreign_run,
    refuse_foreign_unfinished,
    remove_unfinished,
    run_before_markers,
    save_run,
    unfinished_before_markers,
)
from tavq_plugin.cli.demo_table import LEVELS
from tavq_plugin.data.corpus import Corpus, read_splits
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.evaluation.evaluate import evaluate_run
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.own_heads import OwnHeadResults, own_head_retrieval
from tavq_plugin.evaluation.report.pictures import reconstruction_grid, word_regions
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json, writable
from tavq_plugin.io.ownership import claim, strangers
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.losses.alignment_settings import AlignmentSettings
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.base import Method
from tavq_plugin.pixels import to_float
from tavq_plugin.text.encoder import TextEncoder, offline_encoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.training import Recipe, TrainedRun, fit
from tavq_plugin.training.build import build
from tavq_plugin.training.recipe_yaml import read_recipe
from tavq_plugin.training.run_folder import load_weights

SCENES_WEIGHT = 0.03  # λ on drawn scenes: in the 200 steps that use codes, a λ of .1 cost .36 dB (32 px, seed 0)
SCENES = 2000  # training images
PROBE_ROWS = 1000  # probes are fitted on at most this many training images: with more, they would take a minute
RUNS = {"lambda-0": "vqgan", "tavq": "tavq", "shuffled": "tavq-shuffled"}  # run → its method
FORMER_NAMES = {"lambda-0": "baseline"}  # run → its folder's name in an earlier release
FILES = ("demo.json", "reconstructions.png", "words.png")
NAMES = (*FILES, ".training/", *(f"{name}/" for name in RUNS), *(f".{name}.partial/" for name in RUNS))
"""What the demo writes into its folder, and replaces there."""


def demo_recipe(*, resolution: int, steps: int, seed: int) -> Recipe:
    """The recipe that all runs share: `small`, with one checkpoint halfway.

    The added levels send gradient to the host at λ = 0 too, so that the runs differ only in their alignment.
    """
    changed = [f"resolution={resolution}", f"steps={steps}", f"seed={seed}"]
    changed += ["host.wrap.detach_added_levels=false", f"host.wrap.max_grid={max(16, resolution // 2)}"]
    return read_recipe("small", [*changed, f"checkpoint_every={(steps + 1) // 2}", "tracker=none"])


def run_demo(
    *,
    data: Path | None,
    recipe: Recipe,
    weight: float,
    out: Path,
    n_train: int,
    n_eval: int,
    console: Console,
    train: Callable[..., TrainedRun] = fit,
) -> dict[str, Any]:
    """Train, evaluate and draw; returns the content of `demo.json`. Finished runs with the same settings are kept.

    Args:
        data: Folder of images and texts; None for drawn scenes.
        recipe: What all runs share, from `demo_recipe`.
        weight: λ of the alignment at the start.
        out: Folder of the demo.
        n_train: Training images at most.
        n_eval: Images of the tune split at most.
        console: Where progress is shown.
        train: Trains one run, called as `training.fit` is. Default: `fit`.

    Raises:
        FileExistsError: A file that the demo did not write is in the way; raised before training.
    """
    writable(out)
    _rename_former_runs(out)
    claim(out, NAMES, MAKER, former=_former(out))
    encoder = offline_encoder()
    corpus = _corpus(data, recipe.resolution, encoder, n_train=n_train, n_eval=n_eval, console=console)
    options = {"weight": weight, "weight_end": 0.0, **_alignment(recipe.resolution)}
    protocol = _protocol(corpus, recipe, options, encoder)
    _refuse_foreign_files(out, protocol)
    settings = EvaluationSettings(
        probe_rows=_probe_rows(corpus), transport_images=0, judges=(), min_text=0, attentive=False
    )
    targets = TextTargets(corpus, settings)
    judges = Judges(None, corpus.images[corpus.n_train :], names=settings.judges)
    former = read_json(out / "demo.json", strict=False)
    content: dict[str, Any] = {"protocol": protocol, "runs": {}, "floors": {}}
    trained: dict[str, tuple[Tokenizer, TextAlignment | None]] = {}
    for name, method in RUNS.items():
        run_recipe = replace(recipe, method=method, options={} if name == "lambda-0" else options)
        folder, run_settings = out / name, {"run": name, **protocol}
        metrics = load_metrics(folder, run_settings)
        if metrics is not None:
            console.print(f"{name}: kept from {folder}, finished with these settings")
            trained[name] = _load_trained(folder, run_recipe, corpus)
        else:
            training = open_unfinished(out / ".training", run_settings)
            fitted = _train_on_screen(name, run_recipe, corpus, training, console, train)
            tokenizer, align = trained[name] = fitted.tokenizer, _align_of(fitted.method)
            results = evaluate_run(tokenizer, targets, judges)
            own_heads = None if align is None else own_head_retrieval(tokenizer, align, targets)
            metrics = demo_metrics(results, own_heads, fitted)
            save_run(folder, tokenizer, align, run_settings, metrics)
            remove_unfinished(training)
        content["runs"][name] = {key: value for key, value in metrics.items() if key != "history"}
        save_json(out / "demo.json", content)
    former = former if former and former.get("protocol") == protocol else {}
    content["floors"] = former.get("floors") or demo_floors(trained["lambda-0"][0], targets, judges, seed=recipe.seed)
    save_json(out / "demo.json", content)
    _draw(trained, corpus, out)
    return content


def demo_metrics(results: RunResults, own_heads: OwnHeadResults | None, fitted: TrainedRun) -> dict[str, Any]:
    """The numbers of one run as `metrics.json` holds them; None where a run has no value."""
    values = results.values
    fitted_recall = {
        level: {f"r{k}": values.get(f"image_text_r{k}_{i}") for k in (1, 10, 50)} for i, level in enumerate(LEVELS, 1)
    }
    terms = set().union(*fitted.history)
    history = [dict.fromkeys({"level", "alignment"} - terms, 0.0) | row for row in fitted.history]
    return {
        **stored_codes(results),
        "dead_codes": int(values["dead_codes"]),
        "retrieval_fitted": fitted_recall,
        "word_map": {level: values.get(f"word_map_{i}") for i, level in enumerate(LEVELS, 1)},
        "retrieval": own_heads and dict(zip(LEVELS, own_heads.retrieval, strict=True)),
        "plan_entropy": own_heads.plan_entropy if own_heads else [None] * len(LEVELS),
        "marginal_error": own_heads.marginal_error if own_heads else [None] * len(LEVELS),
        "seconds_per_step": fitted.seconds_per_step,
        "plugin_share": fitted.plugin_share,
        "history": history,
    }


def _probe_rows(corpus: Corpus) -> int:
    """Number of training images that the probes are fitted on."""
    return max(2, min(PROBE_ROWS, corpus.n_train))


def _rename_former_runs(out: Path) -> None:
    """Give run folders of an earlier release today's names, unless they hold foreign files."""
    for name, former in FORMER_NAMES.items():
        old, new = out / former, out / name
        if run_before_markers(old) and not os.path.lexists(new) and not strangers(old, former=run_before_markers(old)):
            os.replace(old, new)


def _former(out: Path) -> list[str]:
    """The files and folders of a demo that was made before ownership markers existed."""
    content = read_json(out / "demo.json", strict=False)
    files = FILES if isinstance(content, dict) and {"protocol", "runs"} <= content.keys() else ()
    runs = [f"{name}/" for name in RUNS if run_before_markers(out / name)]
    partial = [f".{name}.partial/" for name in RUNS if run_before_markers(out / f".{name}.partial")]
    return [*files, *runs, *partial, *([".training/"] if unfinished_before_markers(out / ".training") else [])]


def _refuse_foreign_files(out: Path, protocol: dict[str, Any]) -> None:
    """Raise FileExistsError if a folder that would be replaced holds a file that the demo did not write."""
    refuse_foreign_unfinished(out / ".training")
    for name in RUNS:
        refuse_foreign_run(out / f".{name}.partial")
        if load_metrics(out / name, {"run": name, **protocol}) is None:
            refuse_foreign_run(out / name)


def _corpus(
    data: Path | None, resolution: int, encoder: TextEncoder, *, n_train: int, n_eval: int, console: Console
) -> Corpus:
    """Drawn scenes if `data` is None, else the folder's images and texts: those to train and to tune on."""
    source = None if data is None else ImageTextFolder.read(data)
    splits = read_splits(source, resolution, n_train=n_train, n_eval=n_eval, tell=console.print)
    n_train, n = splits.sizes["train"], splits.sizes["train"] + splits.sizes["tune"]
    texts, boxes = splits.texts[:n], splits.boxes[:n]
    store = TextStore.build(texts, encoder, centre_on=range(n_train))
    return Corpus("scenes" if data is None else str(data), splits.images[:n], texts, store, n_train, boxes=boxes)


def _alignment(resolution: int) -> dict[str, Any]:
    """The alignment's settings. Below 64 px the host is small, so heads are small and only every third step aligns."""
    light = {"hidden": 128, "every": 3} if resolution < 64 else {"hidden": None, "every": 1}
    defaults = AlignmentSettings()
    return {"level_weights": list(defaults.level_weights), "contrast": defaults.contrast, **light}


def _load_trained(folder: Path, recipe: Recipe, corpus: Corpus) -> tuple[Tokenizer, TextAlignment | None]:
    tokenizer, method = build(recipe, corpus)
    load_weights(folder, tokenizer, _align_of(method))
    return tokenizer, _align_of(method)


def _train_on_screen(
    name: str, recipe: Recipe, corpus: Corpus, folder: Path, console: Console, train: Callable[..., TrainedRun]
) -> TrainedRun:
    """The trained run, moved to the CPU; its steps are shown as a progress bar."""
    with progress_bar(console) as progress:
        task = progress.add_task(f"{name:9}", total=recipe.steps)

        def show(done: int, row: dict[str, float]) -> None:
            progress.update(task, completed=done)

        fitted = train(recipe.method, recipe, corpus, folder, progress=show)
        progress.update(task, completed=recipe.steps)
    fitted.tokenizer.cpu()
    fitted.method.cpu()
    return fitted


def _align_of(method: Method) -> TextAlignment | None:
    return getattr(method, "align", None)


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
        "split": corpus.split,
        "n_eval": len(corpus.held_out_rows),
        "alignment": _alignment(recipe.resolution),
        "encoder": encoder.fingerprint,
        "stored": "level 3; grid_*: ridge on the code vectors of every place, averaged to at most 8 × 8 places",
        "probe": "ridge on standardised mean-pooled quantized codes, penalty by leave-one-out error, fitted on the "
        f"first {_probe_rows(corpus)} training rows",
        "retrieval": "image→text among the held-out pairs, percent; mean unit embedding, both sides centred",
        "word_map": "mean average precision over the 100 most frequent words of the training texts, percent",
        "psnr": "dB, mean over the held-out images, clamped and rounded to 8 bit; of the level that the decoder reads",
        "spread": "one seed per call: give --seed 0, 1, 2 for a spread over seeds; psnr_standard_error is over images",
        "chance": {f"r{k}": min(100.0, 100 * k / len(corpus.held_out_rows)) for k in (1, 10, 50)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


@torch.no_grad()
def _draw(trained: dict[str, tuple[Tokenizer, TextAlignment | None]], corpus: Corpus, out: Path) -> None:
    rows = list(corpus.held_out_rows)[:8]
    images = to_float(corpus.images[rows])
    grid = {"image": images}
    for name, (tokenizer, _) in trained.items():
        tokenizer.eval()
        grid[name] = tokenizer.decode(tokenizer.encode(images))
    reconstruction_grid(grid, out / "reconstructions.png")

    tokenizer, align = trained["tavq"]
    assert align is not None  # this run trains one
    rows, images, granularity = rows[:4], images[:4], align.levels[0]
    fine = tokenizer.encode(images).levels[0].quantized
    plan = align.match(fine, corpus.store.batch(rows)[granularity], 0).plan()
    words: list[list[str]] = []
    maps: list[Tensor] = []
    for i, row in enumerate(rows):
        units = corpus.store.units(row, granularity)
        if not units:
            words.append([])
            maps.append(plan.new_empty(0))
            continue
        mass = rearrange(plan[i, :, : len(units)], "(h w) m -> m h w", h=fine.shape[2])
        contrast = (mass.flatten(1).std(1) / mass.flatten(1).mean(1)).argsort(descending=True)[:5].tolist()
        words.append([units[j] for j in contrast])
        maps.append(mass[contrast])
    word_regions(images, words, maps, out / "words.png", title="where the transport plan places a word (level 1)")
