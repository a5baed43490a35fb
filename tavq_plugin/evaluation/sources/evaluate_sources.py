"""`tavq evaluate`: the metrics of a comparison for tokenizers that were trained elsewhere; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast, get_args

import torch

from tavq_plugin.data.corpus import load_corpus, load_or_build_corpus
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.splits import Split
from tavq_plugin.evaluation.encoded_images import EncodedImages, encode_images
from tavq_plugin.evaluation.evaluate import evaluate_run, score_tokenizer
from tavq_plugin.evaluation.floors.floor_results import FloorResults, floor_results, refuse_foreign_floors
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.own_heads import own_head_retrieval
from tavq_plugin.evaluation.results import RunResults, load_results, refuse_foreign_results, save_results
from tavq_plugin.evaluation.settings import VERSION, EvaluationSettings
from tavq_plugin.evaluation.sources.evaluation_content import evaluation_content, evaluation_protocol
from tavq_plugin.evaluation.sources.finished_runs import FinishedRun, unfinished_runs
from tavq_plugin.evaluation.sources.read_sources import Source, read_sources
from tavq_plugin.evaluation.sources.source_checks import (
    corpus_folder_of,
    refuse_other_training,
    refuse_out_among,
    refuse_unfit,
    resolution_of,
    text_width_of,
)
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import save_json, writable
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.networks.weights import files_of, require_known_hashes
from tavq_plugin.training.build import build_tokenizer
from tavq_plugin.training.recipe_yaml import read_recipe
from tavq_plugin.types import GRANULARITIES

MAKER = "tavq evaluate"
FILES = ("evaluate.json", "evaluate.md", "evaluate.html", "usage.png", "reconstructions.png")
SPLITS = get_args(Split)
CORPUS = ("corpus.json", "images.safetensors", "test.safetensors")
N_TRAIN, N_TUNE = 3000, 500  # training images and images of the tune split, at most, unless others are asked for
SAMPLED = 4  # training images whose codes and reconstructions identify a user's tokenizer
Tell = Callable[[str], None]


def evaluate_sources(
    given: Sequence[str],
    *,
    out: Path,
    data: Path | None = None,
    split: str = "tune",
    resolution: int | None = None,
    n_train: int | None = None,
    n_eval: int | None = None,
    weights: Path | None = None,
    allow: Sequence[str] = (),
    any_data: bool = False,
    evaluation: EvaluationSettings | None = None,
    read: ReadSettings | None = None,
    tell: Tell = print,
    started: Callable[[str, int], None] = lambda name, number: None,
    finished: Tell = lambda name: None,
) -> dict[str, Any]:
    """Evaluate tokenizers and finished runs, and write evaluate.json, .md and .html; returns the content of the first.

    Nothing is trained. Results are kept in `out`, and read again if the same tokenizer is evaluated in the same way.

    Args:
        given: What to evaluate, as `read_sources` takes it.
        out: Folder of the evaluation.
        data: Folder of images and texts. Default: the data of the first run given, else drawn scenes.
        split: Which held-out images: "tune" or "test".
        resolution: Pixels per side. Default: that of the runs, else 64.
        n_train: Training images for the probes, at most. Default: 3000.
        n_eval: Images of the tune split, at most. Default: 500. The test split is always whole.
        weights: Folder with weights of the judging networks. Default: none.
        allow: Further packages that YAML files and recipes may name.
        any_data: If true, runs that were trained on other data may be evaluated on the test split.
        evaluation: How much is evaluated. Default: `EvaluationSettings()`.
        read: The fields of the data with id and text. Default: those that are understood.
        tell: Called with each message for the user. Default: print.
        started: Called with a run's name and the number of all runs, before it is evaluated. Default: nothing.
        finished: Called with a run's name, after it was evaluated. Default: nothing.

    Raises:
        ValueError: A source, the split or the resolution cannot be evaluated; the message says why.
        FileExistsError: This command did not make a file that would be overwritten.
        FloatingPointError: No tokenizer gives finite codes.
    """
    from tavq_plugin.evaluation.report.write import write_report

    evaluation = evaluation or EvaluationSettings()
    if split not in SPLITS:
        raise ValueError(f"--split {split}: give one of {', '.join(SPLITS)}")
    if weights is not None and not Path(weights).is_dir():
        raise FileNotFoundError(f"no folder {weights}: --weights takes a folder of weights files")
    refuse_taken(out, FILES, MAKER)
    require_known_hashes(weights)
    sources = read_sources(given, allow=allow)
    refuse_out_among(out, sources)
    for source in sources:
        refuse_foreign_results(_results_folder(out, source))
    refuse_foreign_floors(out / "floors", sorted({source.seed for source in sources}))
    for place in filter(Path.is_dir, map(Path, given)):
        for run in unfinished_runs(place):
            tell(f"{run} is not finished: left out")
    folder = corpus_folder_of(sources, out, data, resolution=resolution, n_train=n_train, n_eval=n_eval)
    side = resolution or resolution_of(sources, folder)
    refuse_unfit(sources, side, text_width_of(folder))
    claim(writable(out), FILES, MAKER)
    if folder == out / "data":
        load_or_build_corpus(
            folder, data, side, n_train=n_train or N_TRAIN, n_eval=n_eval or N_TUNE, tell=tell, settings=read
        )
    refuse_other_training(sources, folder, split=split, any_data=any_data, tell=tell)
    corpus = load_corpus(folder, split=cast(Split, split))
    targets = TextTargets(corpus, evaluation)
    depends_on = {
        "corpus": {name: sha256_of(folder / name) for name in CORPUS if (folder / name).exists()},
        "split": split,
        "evaluation": evaluation.to_dict(),
        "version": VERSION,
        "weights": files_of(weights),
    }
    judges = Judges(weights, corpus.images[corpus.n_train :], names=evaluation.judges)
    runs, failed = _run_results(sources, targets, judges, out, depends_on, started=started, finished=finished)
    floors = _floors(sources, runs, targets, judges, out, weights, depends_on, started=started)
    content = evaluation_content(
        sources, runs, failed, floors, targets, evaluation_protocol(sources, targets, folder, weights)
    )
    save_json(out / "evaluate.json", content)
    write_report(content, runs, targets, out, name="evaluate")
    return content


def _run_results(
    sources: Sequence[Source],
    targets: TextTargets,
    judges: Judges,
    out: Path,
    depends_on: Mapping[str, Any],
    *,
    started: Callable[[str, int], None],
    finished: Tell,
) -> tuple[dict[str, dict[int, RunResults]], dict[str, str]]:
    """The results of every source by name and seed, and why a source has none; kept results are only read."""
    runs: dict[str, dict[int, RunResults]] = {}
    failed: dict[str, str] = {}
    for source in sources:
        label, folder = f"{source.name}, seed {source.seed}", _results_folder(out, source)
        settings = {"source": source.settings(targets.corpus.images[:SAMPLED]), **depends_on}
        started(label, len(sources))
        results = load_results(folder, settings)
        if results is None:
            try:
                results = evaluate_source(source, targets, judges)
            except FloatingPointError as error:
                failed[label] = str(error)
                finished(label)
                continue
            save_results(folder, results, settings)
        runs.setdefault(source.name, {})[source.seed] = results
        finished(label)
    if not runs:
        whys = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise FloatingPointError(f"no tokenizer could be evaluated: {whys}")
    return runs, failed


def _floors(
    sources: Sequence[Source],
    runs: Mapping[str, Mapping[int, RunResults]],
    targets: TextTargets,
    judges: Judges,
    out: Path,
    weights: Path | None,
    depends_on: Mapping[str, Any],
    *,
    started: Callable[[str, int], None],
) -> FloorResults:
    """The floors, with as many codes and places as level 3 of the first source."""
    first = next(iter(next(iter(runs.values())).values())).artifacts
    trained = next((source for source in sources if isinstance(source, FinishedRun)), None)
    recipe = trained.recipe if trained else read_recipe("small", [f"resolution={targets.corpus.images.shape[-1]}"])
    has_host = trained is not None or find_spec("taming") is not None  # the recipe's host needs that package

    def untrained(seed: int) -> Tokenizer:
        return build_tokenizer(replace(recipe, seed=seed, init=""), allow=trained.allow if trained else ())

    return floor_results(
        targets, judges, out / "floors", codes=max(2, int(first["codes"])),
        grid=max(1, round(first["held_out_indices"][0].numel() ** 0.5)), seeds=sorted({s.seed for s in sources}),
        untrained=untrained if has_host else None, weights=weights,
        settings={**depends_on, "untrained": recipe.to_dict()["host"] if has_host else None},
        report=lambda name, done, number: started(name, len(sources)),
    )  # fmt: skip


def _results_folder(out: Path, source: Source) -> Path:
    """Where the results of a source are kept."""
    return out / "runs" / source.name / f"seed{source.seed}"


def evaluate_source(source: Source, targets: TextTargets, judges: Judges) -> RunResults:
    """All metrics of one source; a user's tokenizer is left as it was, and levels that nobody trained are left out.

    `own_heads` among the artifacts is the recall of its own heads, level × (1, 10, 50), where it has heads.
    """
    if isinstance(source, FinishedRun):
        return evaluate_run(source.load().tokenizer, targets, judges) | RunResults(dict(source.speed))
    tokenizer, align, own_levels = source.load()
    with source.quiet():
        if not own_levels:
            return evaluate_stored_level(tokenizer, targets, judges)
        results = evaluate_run(tokenizer, targets, judges)
        if align is not None and align.levels == GRANULARITIES:
            retrieval = own_head_retrieval(tokenizer, align, targets).retrieval
            table = torch.tensor([[level[name] for name in ("r1", "r10", "r50")] for level in retrieval])
            results |= RunResults(artifacts={"own_heads": table})
    return results


def evaluate_stored_level(tokenizer: Tokenizer, targets: TextTargets, judges: Judges) -> RunResults:
    """The metrics of `evaluate_run` for the host's own level alone, of a tokenizer in eval mode."""
    corpus, batch_size = targets.corpus, targets.settings.batch_size
    train_images, images = corpus.images[: len(targets.probe_rows)], corpus.images[corpus.n_train :]
    train = _stored(encode_images(tokenizer, train_images, batch_size=batch_size))
    held_out = _stored(
        encode_images(tokenizer, images, batch_size=batch_size, keep=targets.transport_images, decode=True)
    )
    return score_tokenizer(tokenizer, train, held_out, targets, judges)


def _stored(encoded: EncodedImages) -> EncodedImages:
    """The last level alone."""
    levels = {name: getattr(encoded, name)[-1:] for name in ("pooled", "places", "indices", "quantized")}
    return encoded._replace(**levels)
