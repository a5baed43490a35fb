"""Which images an evaluation is of, and what is refused before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tavq_plugin.data.corpus import Corpus, load_corpus
from tavq_plugin.evaluation.sources.read_sources import (
    FinishedRun,
    Source,
    UserTokenizer,
    refuse_images,
    refuse_text_width,
)
from tavq_plugin.io.atomic import read_json
from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.training.trainer import fingerprint

RESOLUTION = 64  # pixels, where neither a run nor the images say


def refuse_out_among(out: Path, sources: Sequence[Source]) -> None:
    """Raise ValueError if the evaluation would be written into the folder of a run or of its comparison."""
    for source in sources:
        if isinstance(source, FinishedRun) and out.resolve() in (
            source.folder.resolve(),
            *source.folder.resolve().parents[:2],
        ):
            raise ValueError(f"--out {out} holds {source.origin}, which is evaluated: give another folder")


def corpus_folder_of(sources: Sequence[Source], out: Path, data: Path | None, **asked: int | None) -> Path:
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


def resolution_of(sources: Sequence[Source], corpus: Path) -> int:
    """The resolution of the runs, else of the corpus, else 64; ValueError if runs differ."""
    sides = {source.recipe.resolution: source.origin for source in sources if isinstance(source, FinishedRun)}
    if len(sides) > 1:
        listed = ", ".join(f"{origin} at {side} px" for side, origin in sides.items())
        raise ValueError(f"the runs were trained at different resolutions ({listed}): evaluate those of one at a time")
    about = read_json(corpus / "corpus.json", strict=False)
    return next(iter(sides), None) or (about["asked"]["resolution"] if about else RESOLUTION)


def refuse_unfit(sources: Sequence[Source], resolution: int, text_width: int) -> None:
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


def text_width_of(corpus: Path) -> int:
    """Width of the text vectors of a corpus, or of the one that would be built."""
    if (corpus / "corpus.json").exists():
        return load_corpus(corpus).store.dim
    from tavq_plugin.text.encoder import offline_encoder

    return offline_encoder().dim


def refuse_other_training(
    sources: Sequence[Source], folder: Path, *, split: str, any_data: bool, tell: Callable[[str], None]
) -> None:
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
