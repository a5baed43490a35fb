"""The corpus of a comparison: read, split, freed of leaks, texts encoded once; kept in a folder for every run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tavq_plugin.data.folders import Pack
from tavq_plugin.data.images import load_images
from tavq_plugin.data.leakage import Leaks, find_leaks
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.text.store import TextStore

LEAST = 2  # images on either side
MAKER = "the corpus of a run"
NAMES = ("corpus.json", "images.safetensors", "store.safetensors")


@dataclass(frozen=True)
class Corpus:
    """Images and texts a run learns from and is measured on; rows 0..n_train-1 train, the rest is held out."""

    name: str
    images: Tensor  # n 3 r r uint8
    texts: Sequence[str]  # n, as they were written
    store: TextStore  # n rows, centred on the training rows
    n_train: int

    @property
    def train_rows(self) -> range:
        """Rows that train."""
        return range(self.n_train)

    @property
    def held_out_rows(self) -> range:
        """Rows that are held out."""
        return range(self.n_train, len(self.images))


def corpus_in(
    folder: Path, data: Path | None, resolution: int, *, n_train: int, n_eval: int, tell: Callable[[str], None]
) -> tuple[Corpus, dict[str, Any]]:
    """A folder's corpus and what a protocol says of it; made there unless it is there, asked for in the same words.

    `data` None draws scenes. Held-out images that training has as well are left out and counted. Raises ValueError
    where either side has fewer than two images, and where the folder holds a corpus that was asked for otherwise;
    FileExistsError where something that we did not make is in the way.
    """
    asked = {"data": "scenes" if data is None else str(data), "resolution": resolution}
    asked |= {"n_train_at_most": n_train, "n_eval_at_most": n_eval}
    pack = None
    if data is not None:
        pack = Pack.read(data)
        asked["records"] = _digest(pack)
    about = read_json(folder / "corpus.json", strict=False)
    ours = isinstance(about, dict) and {"asked", "protocol", "texts"} <= about.keys()
    refuse_taken(folder, NAMES, MAKER, former=NAMES if ours else ())
    if not ours:
        claim(folder, NAMES, MAKER)
        about = _make(folder, pack, asked, tell)
    for name, value in asked.items():
        if about["asked"].get(name) != value:
            raise ValueError(
                f"{folder.parent} compares runs on {name}={about['asked'].get(name)}, and this asks for {value}: give "
                "another --out, or the same data and numbers"
            )
    return load_corpus(folder), about["protocol"]


def load_corpus(folder: Path) -> Corpus:
    """What `corpus_in` left in a folder."""
    about = read_json(folder / "corpus.json", strict=False)
    if about is None:
        raise FileNotFoundError(f"no corpus.json in {folder}: run tavq compare, which makes it")
    images = load_file(folder / "images.safetensors")["images"]
    store = TextStore.load(folder / "store.safetensors")
    return Corpus(about["asked"]["data"], images, about["texts"], store, about["protocol"]["n_train"])


def _make(folder: Path, pack: Pack | None, asked: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    from tavq_plugin.text.encoder import offline_encoder

    encoder = offline_encoder()
    resolution, n_train, n_eval = asked["resolution"], asked["n_train_at_most"], asked["n_eval_at_most"]
    if pack is None:
        images, texts, _ = scenes(n_train + n_eval, seed=0, resolution=resolution)
        train, files = n_train, []
    else:
        taught, held_out = pack.split(n_train=n_train, n_eval=n_eval)
        records, train = [*taught, *held_out], len(taught)
        files = [record.image for record in records]
        images, texts = load_images(files, resolution), [record.text for record in records]
    leaks = find_leaks(images[:train], images[train:], files[:train], files[train:]) if files else Leaks((), ())
    kept = [i for i in range(len(images)) if i - train not in leaks.all]
    _refuse_few(asked["data"], train, len(kept) - train, leaks)
    if leaks.all:
        tell(f"{len(leaks.all)} held-out images are in the training split too ({leaks.counts()}): left out")
    texts = [texts[i] for i in kept]
    if without := sum(not text.strip() for text in texts):
        tell(f"{without} of {len(texts)} images have no text: kept, no part of retrieval")
    store = TextStore.build(texts, encoder, centre_on=range(train))
    about = {
        "asked": asked,
        "texts": texts,
        "protocol": {
            "n_train": train,
            "n_eval": len(kept) - train,
            "without_text": without,
            "leaks_left_out": leaks.counts() if files else "scenes are drawn one by one: none looked for",
            "encoder": store.fingerprint,
        },
    }
    (folder / "corpus.json").unlink(missing_ok=True)
    save_tensors({"images": images[torch.tensor(kept)]}, folder / "images.safetensors")
    store.save(folder / "store.safetensors")
    save_json(folder / "corpus.json", about)  # last: its presence says that the rest is whole
    return about


def _refuse_few(name: str, train: int, held_out: int, leaks: Leaks) -> None:
    if train >= LEAST and held_out >= LEAST:
        return
    why = f", after {len(leaks.all)} that training has as well were left out" if leaks.all else ""
    raise ValueError(
        f"{name} gives {train} images to train and {held_out} to test{why}: {LEAST} each are needed at least; give a "
        "folder with more images, or larger --train and --eval"
    )


def _digest(pack: Pack) -> str:
    """Of the names, texts and splits of a pack's records."""
    digest = hashlib.sha256()
    for record in pack.records:
        digest.update(f"{record.id}\0{record.text}\0{record.split}\0".encode())
    return digest.hexdigest()
