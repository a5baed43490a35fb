"""The held-out images and texts that a page shows, and the text units that a run's heads read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.images import load_images
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.text.splitter import Splitter, TextUnits
from tavq_plugin.text.store import TextStore
from tavq_plugin.use.run import Run
from tavq_plugin.use.run_data import HeldOut

EVIDENCE = 500  # held-out images that words of codes are counted on, at most


@dataclass(frozen=True)
class PageImages:
    """Held-out images with texts: all of them are evidence for words of codes, and the first n are shown."""

    name: str
    images: Tensor  #: e 3 r r uint8
    texts: Sequence[str]  #: e
    units: Sequence[TextUnits]  #: n, of the shown texts
    shown: int  #: n
    store: TextStore | None  #: n rows, centred as in training; None for a run without heads

    @property
    def shown_images(self) -> Tensor:
        """n 3 r r uint8."""
        return self.images[: self.shown]


def read_page_images(
    run: Run,
    data: Path | None = None,
    *,
    shown: int,
    evidence: int = EVIDENCE,
    read: ReadSettings | None = None,
) -> PageImages:
    """The tune split of the data, which the run was not trained on; images with texts come first.

    Args:
        run: Its resolution is used, its encoder, and the means of its training texts.
        data: Images with texts, in any form that `read_records` knows. Default: those that the run was trained on.
            Where the run's own are not at hand, the means are those of these texts.
        shown: Images that the page shows, at most.
        evidence: Images that words of codes are counted on, at most.
        read: How the data are read.

    Raises:
        ValueError: The data have too few images or no text.
        FileNotFoundError: There is no such folder, or the run's own data are not at hand and none are given.
    """
    evidence = max(evidence, shown)
    if data is None:
        images, texts, name = run.held_out()
    else:
        images, texts, name = _from_folder(data, run.recipe.resolution, evidence, read)
    images, texts = images[:evidence], texts[:evidence]
    order = sorted(range(len(texts)), key=lambda i: not texts[i].strip())  # stable
    images, texts = images[torch.tensor(order)], [texts[i] for i in order]
    shown, splitter = min(shown, len(texts)), Splitter()
    store = None
    if run.align is not None:
        store = _centred(TextStore.build(texts[:shown], run.encoder, splitter=splitter), _means(run, data))
    named = "drawn scenes" if name == "scenes" else Path(name).name
    return PageImages(named, images, texts, [splitter(text) for text in texts[:shown]], shown, store)


def _from_folder(data: Path, resolution: int, most: int, read: ReadSettings | None) -> HeldOut:
    """The tune split of a folder."""
    source = ImageTextFolder.read(data, read)
    if source.without_text == len(source.records):
        raise ValueError(
            f"none of the {len(source.records)} images of {data} has a text, and the page shows what codes have to do "
            "with texts: write texts first with tavq caption, or name their field by --text-field"
        )
    records = source.split(n_eval=most).tune
    images = load_images([cast(Path, record.image) for record in records], resolution)
    return HeldOut(images, [record.text for record in records], str(data))


def _means(run: Run, data: Path | None) -> Mapping[str, Tensor]:
    """The means of the run's training texts; where these are not at hand, of the data that are given."""
    try:
        return run.text_means
    except FileNotFoundError:
        if data is None:
            raise
        run.data = data
        return run.text_means


def _centred(store: TextStore, means: Mapping[str, Tensor]) -> TextStore:
    """The store, centred on these means; as it is if they have another width, and then no plan is made of it."""
    if len(next(iter(means.values()))) != store.dim:
        return store
    return replace(store, means=dict(means))
