"""`tavq demo`: train one tokenizer three times from one start: without alignment, with it, and with shuffled texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from tavq_plugin.cli.demo_floors import demo_floors
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
from tavq_plugin.cli.demo_metrics import KEPT_WITH_RUN, demo_metrics
from tavq_plugin.cli.demo_pictures import draw_reconstructions, draw_words
from tavq_plugin.cli.demo_protocol import demo_protocol, probe_rows
from tavq_plugin.cli.demo_settings import DemoSettings
from tavq_plugin.cli.demo_verdict import demo_verdict
from tavq_plugin.cli.demo_words import word_mass
from tavq_plugin.data.corpus import Corpus, read_splits
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.evaluation.evaluate import evaluate_run
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.own_heads import own_head_retrieval
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json, writable
from tavq_plugin.io.ownership import claim, strangers
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.methods.base import Method
from tavq_plugin.text.encoder import TextEncoder, offline_encoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.training import Recipe, TrainedRun, fit
from tavq_plugin.training.build import build
from tavq_plugin.training.demo_recipe import METHODS
from tavq_plugin.training.run_folder import load_weights

FORMER_NAMES = {"lambda-0": "baseline"}  # run → its folder's name in an earlier release
FILES = ("demo.json", "reconstructions.png", "words.png")
NAMES = (*FILES, ".training/", *(f"{name}/" for name in METHODS), *(f".{name}.partial/" for name in METHODS))
"""What the demo writes into its folder, and replaces there."""


class DemoRun(NamedTuple):
    """One finished run of the demo."""

    tokenizer: Tokenizer
    align: TextAlignment | None  # None for a run without alignment
    metrics: dict[str, Any]


def run_demo(
    settings: DemoSettings, *, out: Path, console: Console, train: Callable[..., TrainedRun] = fit
) -> dict[str, Any]:
    """Train, evaluate and draw; returns the content of `demo.json`. Finished runs with the same settings are kept.

    Args:
        settings: What is trained and measured, from `demo_settings`.
        out: Folder of the demo.
        console: Where progress is shown.
        train: Trains one run, called as `training.fit` is. Default: `fit`.

    Raises:
        FileExistsError: A file that the demo did not write is in the way; raised before training.
    """
    writable(out)
    _rename_former_runs(out)
    claim(out, NAMES, MAKER, former=_former(out))
    console.print(settings.start, markup=False, highlight=False)
    encoder = offline_encoder()
    corpus = _corpus(settings, encoder, console)
    protocol = demo_protocol(settings, corpus, encoder)
    _refuse_foreign_files(out, protocol)
    evaluation = EvaluationSettings(
        probe_rows=probe_rows(corpus), transport_images=0, judges=(), ssim=False, min_text=0, attentive=False
    )
    # without boxes: no table of the demo shows the probes that read them, and they take seconds
    targets = TextTargets(replace(corpus, boxes=()), evaluation)
    judges = Judges(None, corpus.images[corpus.n_train :], names=evaluation.judges)
    former = read_json(out / "demo.json", strict=False)
    content: dict[str, Any] = {"protocol": protocol, "runs": {}, "floors": {}}
    runs: dict[str, DemoRun] = {}
    for name, method in METHODS.items():
        options = {} if name == "lambda-0" else settings.alignment
        recipe, asked = replace(settings.recipe, method=method, options=options), {"run": name, **protocol}
        kept = _kept_run(out / name, recipe, corpus, asked)
        if kept is not None:
            console.print(f"{name}: kept from {out / name}, finished with these settings")
        runs[name] = kept or _new_run(name, out, recipe, corpus, targets, judges, asked, console, train)
        content["runs"][name] = {key: value for key, value in runs[name].metrics.items() if key not in KEPT_WITH_RUN}
        save_json(out / "demo.json", content)
    former = former if former and former.get("protocol") == protocol else {}
    lambda_0 = runs["lambda-0"].tokenizer
    content["floors"] = former.get("floors") or demo_floors(lambda_0, targets, judges, seed=settings.recipe.seed)
    content["verdict"] = demo_verdict(content, {name: run.metrics["per_image"] for name, run in runs.items()})
    save_json(out / "demo.json", content)
    draw_reconstructions({name: run.tokenizer for name, run in runs.items()}, corpus, out / "reconstructions.png")
    aligned = runs["tavq"]
    assert aligned.align is not None  # this run trains one
    draw_words(aligned.tokenizer, aligned.align, corpus, out / "words.png")
    return content


def _kept_run(folder: Path, recipe: Recipe, corpus: Corpus, asked: dict[str, Any]) -> DemoRun | None:
    """The run in a folder, if it was finished with these settings."""
    metrics = load_metrics(folder, asked)
    if metrics is None:
        return None
    tokenizer, method = build(replace(recipe, init=""), corpus)
    load_weights(folder, tokenizer, _align_of(method))
    return DemoRun(tokenizer, _align_of(method), metrics)


def _new_run(
    name: str,
    out: Path,
    recipe: Recipe,
    corpus: Corpus,
    targets: TextTargets,
    judges: Judges,
    asked: dict[str, Any],
    console: Console,
    train: Callable[..., TrainedRun],
) -> DemoRun:
    """Train a run, or resume it, evaluate it, and write its folder."""
    training = open_unfinished(out / ".training", asked)
    fitted = _train_on_screen(name, recipe, corpus, training, console, train)
    tokenizer, align = fitted.tokenizer, _align_of(fitted.method)
    results = evaluate_run(tokenizer, targets, judges)
    own_heads = None if align is None else own_head_retrieval(tokenizer, align, targets)
    mass = None if align is None else word_mass(tokenizer, align, corpus)
    metrics = demo_metrics(results, own_heads, mass, fitted)
    save_run(out / name, tokenizer, align, asked, metrics, corpus.store.means)
    remove_unfinished(training)
    return DemoRun(tokenizer, align, metrics)


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


def _corpus(settings: DemoSettings, encoder: TextEncoder, console: Console) -> Corpus:
    """The images and texts to train and to tune on."""
    source = None if settings.data is None else ImageTextFolder.read(settings.data, settings.read)
    splits = read_splits(
        source, settings.recipe.resolution, n_train=settings.n_train, n_eval=settings.n_eval, tell=console.print
    )
    n_train, n = splits.sizes["train"], splits.sizes["train"] + splits.sizes["tune"]
    texts, boxes = splits.texts[:n], splits.boxes[:n]
    store = TextStore.build(texts, encoder, centre_on=range(n_train))
    name = "scenes" if settings.data is None else str(settings.data)
    return Corpus(name, splits.images[:n], texts, store, n_train, boxes=boxes if any(boxes) else ())


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
    runs = [f"{name}/" for name in METHODS if run_before_markers(out / name)]
    partial = [f".{name}.partial/" for name in METHODS if run_before_markers(out / f".{name}.partial")]
    return [*files, *runs, *partial, *([".training/"] if unfinished_before_markers(out / ".training") else [])]


def _refuse_foreign_files(out: Path, protocol: dict[str, Any]) -> None:
    """Raise FileExistsError if a folder that would be replaced holds a file that the demo did not write."""
    refuse_foreign_unfinished(out / ".training")
    for name in METHODS:
        refuse_foreign_run(out / f".{name}.partial")
        if load_metrics(out / name, {"run": name, **protocol}) is None:
            refuse_foreign_run(out / name)


def _align_of(method: Method) -> TextAlignment | None:
    return getattr(method, "align", None)
