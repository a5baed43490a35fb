"""The held-out images and texts that a page shows, and the text units that a run's heads read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from tavq_plugin.data.corpus import load_corpus
from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.images import load_images
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.evaluation.sources.finished_runs import FinishedRun
from tavq_plugin.tasks.task_data import SCENES_SEED
from tavq_plugin.text.encoder import TextEncoder
from tavq_plugin.text.splitter import Splitter, TextUnits
from tavq_plugin.text.store import TextStore

EVIDENCE = 500  # held-out images that words of codes are counted on, at most
CENTRED_ON = 100  # training texts whose mean is subtracted from the units, where the run's own means are not at hand


@dataclass(frozen=True)
class PageImages:
    """Held-out images with texts: all of them are evidence for words of codes, and the first n are shown."""

    name: str
    images: Tensor  #: e 3 r r uint8
    texts: Sequence[str]  #: e
    units: Sequence[TextUnits]  #: e
    shown: int  #: n
    store: TextStore | None  #: n rows, centred as in training; None for a run without heads

    @property
    def shown_images(self) -> Tensor:
        """n 3 r r uint8."""
        return self.images[: self.shown]


def read_page_images(
    run: FinishedRun,
    data: Path | None,
    *,
    shown: int,
    encoder: Callable[[], TextEncoder] | None,
    evidence: int = EVIDENCE,
    read: ReadSettings | None = None,
    splitter: Splitter | None = None,
) -> PageImages:
    """The tune split of the data, which no run was trained on; images with texts come first.

    Args:
        run: Its resolution is used, and its corpus if that is at hand.
        data: Images with texts, in any form that `read_records` knows. Default: the corpus in the run's folder, else
            drawn scenes that no run of ours was trained on.
        shown: Images that the page shows, at most.
        encoder: Gives the encoder of the texts. None: the run has no heads, and nothing is encoded.
        evidence: Images that words of codes are counted on, at most.
        read: How the data are read.
        splitter: Splits the texts. Default: `Splitter()`.

    Raises:
        ValueError: The data have too few images or no text.
        FileNotFoundError: There is no such folder.
    """
    splitter = splitter or Splitter()
    evidence = max(evidence, shown)
    kept = None if run.corpus_folder is None else load_corpus(run.corpus_folder)
    if data is not None:
        name, images, texts, train = _from_folder(data, run.recipe.resolution, evidence, read)
    elif kept is not None:
        rows = kept.held_out_rows[:evidence]
        name, images = kept.name, kept.images[rows.start : rows.stop]
        texts, train = [kept.texts[row] for row in rows], [kept.texts[row] for row in kept.train_rows[:CENTRED_ON]]
    else:
        drawn = scenes(CENTRED_ON + evidence, seed=SCENES_SEED, resolution=run.recipe.resolution)
        name, images = f"drawn scenes of seed {SCENES_SEED}", drawn.images[CENTRED_ON:]
        texts, train = drawn.texts[CENTRED_ON:], drawn.texts[:CENTRED_ON]
    order = sorted(range(len(texts)), key=lambda i: not texts[i].strip())  # stable
    images, texts = images[torch.tensor(order)], [texts[i] for i in order]
    units, shown = [splitter(text) for text in texts], min(shown, len(texts))
    store = None
    if encoder is not None:
        fitted = None if kept is None else kept.store
        store = _store(texts[:shown], train, encoder(), splitter, fitted)
    return PageImages(name, images, texts, units, shown, store)


def _from_folder(
    data: Path, resolution: int, most: int, read: ReadSettings | None
) -> tuple[str, Tensor, list[str], list[str]]:
    """Name, images and texts of the tune split, and some training texts."""
    source = ImageTextFolder.read(data, read)
    if source.without_text == len(source.records):
        raise ValueError(
            f"none of the {len(source.records)} images of {data} has a text, and the page shows what codes have to do "
            "with texts: write texts first with tavq caption, or name their field by --text-field"
        )
    splits = source.split(n_eval=most)
    images = load_images([cast(Path, record.image) for record in splits.tune], resolution)
    train = [record.text for record in splits.train if record.text.strip()]
    return data.name, images, [record.text for record in splits.tune], train[:CENTRED_ON]


def _store(
    texts: Sequence[str], train: Sequence[str], encoder: TextEncoder, splitter: Splitter, fitted: TextStore | None
) -> TextStore:
    """The units of the shown texts, centred on the store that the run was trained with, or on training texts."""
    both = [*train, *texts] if fitted is None else [*texts]
    first = len(both) - len(texts)
    store = TextStore.build(both, encoder, splitter=splitter, centre_on=range(first) if first else None)
    if fitted is not None:
        if fitted.fingerprint == store.fingerprint:
            store = store.with_mean_of(fitted)
        else:  # another encoder: its means mean nothing here
            return _store(texts, train, encoder, splitter, None)
    store = store.subset(range(first, len(both)))
    return replace(store, ids=tuple(map(str, range(len(texts)))))  # a row's number is its id
