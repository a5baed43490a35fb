"""The images and texts that a run was trained on: those it kept, drawn scenes, or a folder that the user gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tavq_plugin.data.corpus import Corpus, ReadSplits, load_corpus, read_splits
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.splits import Split
from tavq_plugin.evaluation.sources.finished_runs import FinishedRun
from tavq_plugin.io.atomic import read_json
from tavq_plugin.text.store import TextStore
from tavq_plugin.use.find_run import hub_config

SCENES = "scenes"
N_TRAIN, N_EVAL = 3000, 500  # images, at most, where neither the run nor the user says
AT_MOST = 10**9  # all images of a folder
ReadData = Callable[[], tuple[ReadSplits, str]]


class HeldOut(NamedTuple):
    """The images that a run was not trained on, with their texts."""

    images: Tensor  # n 3 r r uint8
    texts: Sequence[str]
    name: str


class DataOfRun(NamedTuple):
    """Where the data of a run come from."""

    name: str  # "scenes", or the folder's name in the run's settings
    n_train: int
    n_eval: int
    read: ReadSettings = ReadSettings()  # the fields with id and text that its command named


def data_of_run(run: FinishedRun) -> DataOfRun:
    """What a run's own folder says of its data; the numbers are those that its command was given."""
    config = hub_config(run.folder)
    settings = (config or {}).get("training_data") or read_json(run.folder / "settings.json", strict=False) or {}
    if isinstance(settings.get("corpus"), Mapping):
        corpus = settings["corpus"]
        n_train = int(corpus["n_train"])
        return DataOfRun(str(corpus["name"]), n_train, int(corpus["images"]) - n_train)
    numbers = (int(settings.get("n_train", N_TRAIN)), int(settings.get("n_eval", N_EVAL)))
    read = ReadSettings(text_field=settings.get("text_field"), id_field=settings.get("id_field"))
    return DataOfRun(str(settings.get("data", "")), *numbers, read)


def held_out(
    run: FinishedRun,
    data: Path | None,
    *,
    split: Split = "tune",
    tell: Callable[[str], None],
    read: ReadData | None = None,
) -> HeldOut:
    """The held-out images of a run, without encoding any text; `read` as in `text_means`. Raises as `corpus_of_run`."""
    if data is None and run.corpus_folder is not None:
        corpus = load_corpus(run.corpus_folder, split=split)
        rows = corpus.held_out_rows
        return HeldOut(corpus.images[rows.start :], [corpus.texts[row] for row in rows], corpus.name)
    splits, name = read_data(run, data, tell) if read is None else read()
    start = splits.sizes["train"] + (splits.sizes["tune"] if split == "test" else 0)
    part = slice(start, start + splits.sizes[split])
    return HeldOut(splits.images[part], splits.texts[part], name)


def corpus_of_run(
    run: FinishedRun, data: Path | None, encoder: Any, *, split: Split = "tune", tell: Callable[[str], None]
) -> Corpus:
    """The corpus that a run was trained on, with its texts encoded.

    Raises:
        FileNotFoundError: The run's data are not at hand, and none are given.
        ValueError: The folder that is given has too few images or no text.
    """
    if data is None and run.corpus_folder is not None:
        return load_corpus(run.corpus_folder, split=split)
    splits, name = read_data(run, data, tell)
    train, tune = splits.sizes["train"], splits.sizes["tune"]
    rows = [*range(train + tune)]
    if split == "test":
        rows = [*range(train), *range(train + tune, len(splits.texts))]
    texts, boxes = [splits.texts[row] for row in rows], [splits.boxes[row] for row in rows]
    store = TextStore.build(texts, encoder, centre_on=range(train))
    return Corpus(name, splits.images[rows], texts, store, train, split, boxes if any(boxes) else ())


def text_means(
    run: FinishedRun,
    data: Path | None,
    encoder: Any,
    *,
    tell: Callable[[str], None],
    read: ReadData | None = None,
) -> dict[str, Tensor]:
    """The mean embedding of the training texts, by granularity, which a run's heads expect to be subtracted.

    `read` gives what `read_data` gives, where that is at hand already. Raises as `corpus_of_run`.
    """
    if data is None and run.corpus_folder is not None:
        return dict(TextStore.load(run.corpus_folder / "store.safetensors").means)
    splits, _ = read_data(run, data, tell) if read is None else read()
    return dict(TextStore.build(splits.texts[: splits.sizes["train"]], encoder).means)


def read_data(run: FinishedRun, data: Path | None, tell: Callable[[str], None]) -> tuple[ReadSplits, str]:
    """The splits of the data given, or of the run's own; and their name. Raises as `corpus_of_run`."""
    own = data_of_run(run)
    if data is None and own.name != SCENES:
        there = Path(own.name)
        if not own.name or not there.exists():
            named = f" ({own.name})" if own.name else ""
            raise FileNotFoundError(
                f"the data that {run.folder} was trained on{named} are not here: give their folder, by data= or --data"
            )
        data = there
    source = None if data is None else ImageTextFolder.read(data, own.read if own.name == str(data) else None)
    n_eval = own.n_eval if source is None or own.name == str(data) else AT_MOST
    splits = read_splits(source, run.recipe.resolution, n_train=own.n_train, n_eval=n_eval, tell=tell)
    return splits, SCENES if source is None else str(data)


def with_means(store: TextStore, means: Mapping[str, Tensor]) -> TextStore:
    """The store, centred on the means of a run. Raises ValueError if the texts are encoded with another width."""
    width = len(next(iter(means.values())))
    if width != store.dim:
        raise ValueError(
            f"the texts are encoded with width {store.dim}, and this run was trained with {width}: give encoder=, the "
            "encoder that it was trained with"
        )
    return replace(store, means=dict(means))
