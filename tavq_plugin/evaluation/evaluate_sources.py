"""`tavq evaluate`: the metrics of a comparison for tokenizers that were trained elsewhere; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from tavq_plugin.data.corpus import Corpus, load_corpus, load_or_build_corpus
from tavq_plugin.data.splits import Split
from tavq_plugin.evaluation.aggregate import reference_of, summarise
from tavq_plugin.evaluation.encoded_images import EncodedImages, codebook_sizes, encode_images
from tavq_plugin.evaluation.evaluate import evaluate_run, score_codes
from tavq_plugin.evaluation.floor_results import FloorResults, floor_results
from tavq_plugin.evaluation.headline import headline_sentence
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.own_heads import own_head_retrieval
from tavq_plugin.evaluation.protocol import commit, versions
from tavq_plugin.evaluation.results import RunResults, load_results, refuse_foreign_results, save_results
from tavq_plugin.evaluation.settings import VERSION, EvaluationSettings
from tavq_plugin.evaluation.sources import (
    FinishedRun,
    Source,
    UserTokenizer,
    read_sources,
    refuse_images,
    refuse_text_width,
    unfinished_runs,
)
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json, save_text, writable
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.networks.weights import files_of, require_known_hashes
from tavq_plugin.training.build import build_tokenizer
from tavq_plugin.training.trainer import fingerprint
from tavq_plugin.types import GRANULARITIES

MAKER = "tavq evaluate"
FILES = ("evaluate.json", "evaluate.md", "evaluate.html", "usage.png", "reconstructions.png", "curves.png")
SPLITS = get_args(Split)
CORPUS = ("corpus.json", "images.safetensors", "test.safetensors")
TRAIN, EVAL, RESOLUTION = 3000, 500, 64  # training images, held-out images and pixels where nothing else says
SAMPLED = 4  # training images whose codes identify a user's tokenizer
UNTRAINED = (
    "tavq.wrap added levels 1 and 2 for this evaluation, and nobody trained them; level 3 is the tokenizer's own"
)
FLATTERED = (
    "image→text retrieval through the heads that were trained with the tokenizer; it flatters its own method, so it "
    "cannot be compared with the probes above"
)
NO_TIME = "tavq evaluate trains nothing, so it cannot give every tokenizer the same time"
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
        n_eval: Held-out images, at most. Default: 500.
        weights: Folder with weights of the judging networks. Default: none.
        allow: Further packages that YAML files and recipes may name.
        any_data: If true, runs that were trained on other data may be evaluated on the test split.
        evaluation: How much is evaluated. Default: `EvaluationSettings()`.
        tell: Called with each message for the user. Default: print.
        started: Called with a run's name and the number of all runs, before it is evaluated. Default: nothing.
        finished: Called with a run's name, after it was evaluated. Default: nothing.

    Raises:
        ValueError: A source, the split or the resolution cannot be evaluated; the message says why.
        FileExistsError: This command did not make a file that would be overwritten.
        FloatingPointError: No tokenizer gives finite codes.
    """
    evaluation = evaluation or EvaluationSettings()
    if split not in SPLITS:
        raise ValueError(f"--split {split}: give one of {', '.join(SPLITS)}")
    if weights is not None and not Path(weights).is_dir():
        raise FileNotFoundError(f"no folder {weights}: --weights takes a folder of weights files")
    refuse_taken(out, FILES, MAKER)
    require_known_hashes(weights)
    sources = read_sources(given, allow=allow)
    _refuse_out(out, sources)
    for source in sources:
        refuse_foreign_results(_results_folder(out, source))
    for place in filter(Path.is_dir, map(Path, given)):
        for run in unfinished_runs(place):
            tell(f"{run} is not finished: left out")
    folder = _corpus_folder(sources, out, data, resolution=resolution, n_train=n_train, n_eval=n_eval)
    side = resolution or _resolution_of(sources, folder)
    _refuse_unfit(sources, side, _text_width(folder))
    claim(writable(out), FILES, MAKER)
    if folder == out / "data":
        load_or_build_corpus(folder, data, side, n_train=n_train or TRAIN, n_eval=n_eval or EVAL, tell=tell)
    _refuse_unseen(sources, folder, split=split, any_data=any_data, tell=tell)
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
    found = _floors(sources, runs, targets, judges, out, weights, depends_on, started=started)
    content = _content(sources, runs, failed, found, targets, _protocol(sources, targets, folder, weights))
    save_json(out / "evaluate.json", content)
    _write_report(content, runs, targets, sources, out)
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
        raise FloatingPointError("; ".join(f"{name}: {why}" for name, why in failed.items()))
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

    def untrained(seed: int) -> Tokenizer:
        assert trained is not None
        return build_tokenizer(replace(trained.recipe, seed=seed), allow=trained.allow)

    return floor_results(
        targets, judges, out / "floors", codes=max(2, int(first["codes"])),
        grid=max(1, round(first["held_out_indices"][0].numel() ** 0.5)), seeds=sorted({s.seed for s in sources}),
        untrained=None if trained is None else untrained, weights=weights, settings=depends_on,
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
    greatest = max(int(index.max()) for side in (train, held_out) for index in side.indices if index is not None)
    return score_codes(train, held_out, codebook_sizes(tokenizer, greatest)[-1:], targets, judges)


def _stored(encoded: EncodedImages) -> EncodedImages:
    """The last level alone."""
    levels = {name: getattr(encoded, name)[-1:] for name in ("pooled", "places", "indices", "quantized")}
    return encoded._replace(**levels)


# ---- refusals


def _refuse_out(out: Path, sources: Sequence[Source]) -> None:
    """Raise ValueError if the evaluation would be written into the folder of a run or of its comparison."""
    for source in sources:
        if isinstance(source, FinishedRun) and out.resolve() in (
            source.folder.resolve(),
            *source.folder.resolve().parents[:2],
        ):
            raise ValueError(f"--out {out} holds {source.origin}, which is evaluated: give another folder")


def _corpus_folder(sources: Sequence[Source], out: Path, data: Path | None, **asked: int | None) -> Path:
    """The folder of the corpus: that of the runs given, unless `data` is given or they have none; else in `out`."""
    folders = {source.corpus_folder: source for source in sources if isinstance(source, FinishedRun)}
    folders.pop(None, None)  # type: ignore[call-overload]
    if data is not None or not folders:
        return out / "data"
    hashes = {sha256_of(folder / "images.safetensors") for folder in folders if folder is not None}
    if len(hashes) > 1:
        raise ValueError(
            f"{', '.join(map(str, folders))} hold different images: give --data, and all are evaluated on that"
        )
    folder = next(iter(folders))
    assert folder is not None
    about = read_json(folder / "corpus.json")["asked"]
    settled = {
        "resolution": about["resolution"],
        "n_train": about["n_train_at_most"],
        "n_eval": about["n_eval_at_most"],
    }
    for name, value in asked.items():
        if value is not None and value != settled[name]:
            option = {"n_train": "--train", "n_eval": "--eval"}.get(name, f"--{name}")
            raise ValueError(
                f"{option} {value}: the images are those of {folder}, which has {settled[name]}; leave {option} out, "
                "or give --data"
            )
    return folder


def _resolution_of(sources: Sequence[Source], corpus: Path) -> int:
    """The resolution of the runs, else of the corpus, else 64; ValueError if runs differ."""
    sides = {source.recipe.resolution: source.origin for source in sources if isinstance(source, FinishedRun)}
    if len(sides) > 1:
        listed = ", ".join(f"{origin} at {side} px" for side, origin in sides.items())
        raise ValueError(f"the runs were trained at different resolutions ({listed}): evaluate those of one at a time")
    about = read_json(corpus / "corpus.json", strict=False)
    return next(iter(sides), None) or (about["asked"]["resolution"] if about else RESOLUTION)


def _refuse_unfit(sources: Sequence[Source], resolution: int, text_width: int) -> None:
    """Raise ValueError for a source that cannot take images of this size, or whose heads have another width."""
    for source in sources:
        if isinstance(source, UserTokenizer):
            refuse_text_width(source, text_width)
            refuse_images(source, resolution)
        elif source.recipe.resolution != resolution:
            raise ValueError(
                f"{source.origin} was trained at {source.recipe.resolution} px, and this evaluation is at "
                f"{resolution}: give --resolution {source.recipe.resolution}"
            )


def _text_width(corpus: Path) -> int:
    """Width of the text vectors of a corpus, or of the one that would be built."""
    if (corpus / "corpus.json").exists():
        return load_corpus(corpus).store.dim
    from tavq_plugin.text.encoder import offline_encoder

    return offline_encoder().dim


def _refuse_unseen(sources: Sequence[Source], folder: Path, *, split: str, any_data: bool, tell: Tell) -> None:
    """Raise ValueError for a run on the test split whose training data are not known to be these."""
    corpus = load_corpus(folder)  # as a run's settings name it: with the tune split held out
    for source in sources:
        if not isinstance(source, FinishedRun) or trained_on_this(source, corpus):
            continue
        what = "names no data" if source.trained_on is None else "was trained on other data, or on another part of it"
        if split == "test" and not any_data:
            raise ValueError(
                f"{source.origin} {what}, so it may have seen the test images of {folder}: evaluate it with the "
                "--data, --train and --eval that it was trained with, or give --any-data if you know that it has not"
            )
        tell(f"{source.origin} {what}: it may have seen the held-out images")


def trained_on_this(run: FinishedRun, corpus: Corpus) -> bool:
    """Whether a run's settings name this corpus as its training data; the folder's path may differ."""
    if run.trained_on is None:
        return False
    ours = fingerprint(corpus)
    return {name: run.trained_on.get(name) for name in ours if name != "name"} == {
        name: value for name, value in ours.items() if name != "name"
    }


# ---- what is written


def _content(
    sources: Sequence[Source],
    runs: Mapping[str, Mapping[int, RunResults]],
    failed: Mapping[str, str],
    found: FloorResults,
    targets: TextTargets,
    protocol: dict[str, Any],
) -> dict[str, Any]:
    """Content of evaluate.json: that of a comparison, with `notes` on the sources and the recall of `own_heads`."""
    reference = reference_of(runs)
    content = summarise(runs, targets, reference=reference, floors=found.runs, equal_time=NO_TIME)
    _explain_levels(content, sources)
    tables = (*content["methods"].values(), *content["floors"].values())
    measured_on = {name: protocol[name] for name in ("data", "split", "n_eval", "seeds")}
    cards = {metric: {**card_of(metric).to_dict(), **measured_on} for table in tables for metric in table}
    protocol |= {"reference": reference, "floors": found.titles, "floors_left_out": found.left_out, "cards": cards}
    content |= {"protocol": protocol, "failed": dict(failed)}
    content["headline"] = headline_sentence(content)
    content["own_heads"] = {
        name: {str(seed): results.artifacts["own_heads"].tolist() for seed, results in seeds.items()}
        for name, seeds in runs.items()
        if all("own_heads" in results.artifacts for results in seeds.values())
    }
    content["notes"] = _notes(sources, protocol["split"], content["own_heads"])
    return content


def _explain_levels(content: Mapping[str, Any], sources: Sequence[Source]) -> None:
    """Add to "absent" why a plain host lacks what rests on levels 1 and 2."""
    metrics = {metric for table in content["methods"].values() for metric in table}
    of_all = {metric.removesuffix("_1") for metric in metrics if metric.endswith("_1")} | {"masked_word"}
    on_added = {m for m in metrics if m.endswith(("_1", "_2")) or m in of_all | {"masked_word_gain", "similarity_mse"}}
    for source in sources:
        table = content["methods"].get(source.name)
        if table is not None and isinstance(source, UserTokenizer) and not source.loaded.own_levels:
            content["absent"][source.name] |= dict.fromkeys(sorted(on_added - table.keys()), UNTRAINED)


def _notes(sources: Sequence[Source], split: str, own_heads: Mapping[str, Any]) -> list[str]:
    """What a reader must know about the sources, as sentences."""
    own = [source for source in sources if isinstance(source, UserTokenizer)]
    notes = [f"{source.name}: {UNTRAINED}." for source in own if not source.loaded.own_levels]
    if own:
        names = ", ".join(source.name for source in own)
        notes.append(f"Whether {names} saw the images of the {split} split in training cannot be known from here.")
    for name, seeds in own_heads.items():
        for seed, table in seeds.items():
            levels = "; ".join(
                f"level {number}: R@1 {r1:.1f}, R@10 {r10:.1f}, R@50 {r50:.1f} %"
                for number, (r1, r10, r50) in enumerate(table, 1)
            )
            notes.append(f"{name}, seed {seed}, {FLATTERED}: {levels}.")
    return notes


def _protocol(sources: Sequence[Source], targets: TextTargets, folder: Path, weights: Path | None) -> dict[str, Any]:
    """What the numbers depend on."""
    about, corpus = read_json(folder / "corpus.json"), targets.corpus
    return {
        "data": about["asked"]["data"],
        **about["protocol"],
        "split": corpus.split,
        "n_train": corpus.n_train,
        "n_eval": len(corpus.held_out_rows),
        "commit": commit(),
        "methods": list(dict.fromkeys(source.name for source in sources)),
        "seeds": sorted({source.seed for source in sources}),
        "sources": {f"{source.name}, seed {source.seed}": source.origin for source in sources},
        "recipe": {"resolution": corpus.images.shape[-1]},
        "measuring": {
            "words": len(targets.top_words),
            "probe_rows": len(targets.probe_rows),
            "transported": len(targets.transport_images),
        },
        "weights": files_of(weights),
        "chance": "each text metric with the texts dealt at random among the held-out images, mean of "
        f"{targets.settings.permutations} deals, stored beside each value",
        "spread": "standard deviation over seeds; none for one seed",
        "significance": "random effects of seeds and images (crossed), t test over seeds where there is no value per "
        "image; two-sided, p adjusted over the methods by Holm; no test below three seeds",
        "images": "all share the held-out images, and the training images of the probes",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _write_report(
    content: dict[str, Any],
    runs: Mapping[str, Mapping[int, RunResults]],
    targets: TextTargets,
    sources: Sequence[Source],
    out: Path,
) -> None:
    from tavq_plugin.evaluation.report.comparison_table import markdown

    save_text(out / "evaluate.md", markdown(content))
