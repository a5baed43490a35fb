"""The corpus of a comparison: images and texts, split without leakage, encoded once, kept in one folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.images import load_images
from tavq_plugin.data.leakage import Leakage, find_leakage
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.moved import old_names
from tavq_plugin.text.store import TextStore

__getattr__ = old_names(__name__)  # names that were renamed

MIN_IMAGES = 2  # per split
MAKER = "the corpus of a run"
FILES = ("corpus.json", "images.safetensors", "store.safetensors")


@dataclass(frozen=True)
class Corpus:
    """Images and texts of a run: rows 0..n_train-1 train, the others are held out."""

    name: str
    images: Tensor  # n 3 r r uint8
    texts: Sequence[str]  # n
    store: TextStore  # n rows, centred on the training rows
    n_train: int

    @property
    def train_rows(self) -> range:
        """Rows of the training split."""
        return range(self.n_train)

    @property
    def held_out_rows(self) -> range:
        """Rows of the held-out split."""
        return range(self.n_train, len(self.images))


def load_or_build_corpus(
    folder: Path, data: Path | None, resolution: int, *, n_train: int, n_eval: int, tell: Callable[[str], None]
) -> tuple[Corpus, dict[str, Any]]:
    """The corpus in a folder, built if the folder has none, and its description for a protocol.

    Held-out images that are also in the training split are left out and counted.

    Args:
        folder: Where the corpus is kept.
        data: A folder of images with text. None: synthetic scenes.
        resolution: Side of the images.
        n_train: Training images, at most.
        n_eval: Held-out images, at most.
        tell: Called with each message to the user.

    Raises:
        ValueError: A split has fewer than two images, or the folder holds a corpus of other data or numbers.
        FileExistsError: A file that we did not write is in the way.
    """
    asked = {"data": "scenes" if data is None else str(data), "resolution": resolution}
    asked |= {"n_train_at_most": n_train, "n_eval_at_most": n_eval}
    source = None
    if data is not None:
        source = ImageTextFolder.read(data)
        asked["records"] = _digest(source)
    about = read_json(folder / "corpus.json", strict=False)
    ours = isinstance(about, dict) and {"asked", "protocol", "texts"} <= about.keys()
    refuse_taken(folder, FILES, MAKER, former=FILES if ours else ())
    if not ours:
        claim(folder, FILES, MAKER)
        about = _build(folder, source, asked, tell)
    for name, value in asked.items():
        if about["asked"].get(name) != value:
            raise ValueError(
                f"{folder.parent} compares runs on {name}={about['asked'].get(name)}, but this run asks for {value}: "
                "give another --out, or the same data and numbers"
            )
    return load_corpus(folder), about["protocol"]


def load_corpus(folder: Path) -> Corpus:
    """The corpus that `load_or_build_corpus` wrote to a folder."""
    about = read_json(folder / "corpus.json", strict=False)
    if about is None:
        raise FileNotFoundError(f"no corpus.json in {folder}: run tavq compare, which writes it")
    images = load_file(folder / "images.safetensors")["images"]
    store = TextStore.load(folder / "store.safetensors")
    return Corpus(about["asked"]["data"], images, about["texts"], store, about["protocol"]["n_train"])


def _build(
    folder: Path, source: ImageTextFolder | None, asked: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Write the files of the corpus, and return the content of corpus.json."""
    from tavq_plugin.text.encoder import offline_encoder

    encoder = offline_encoder()
    resolution, n_train, n_eval = asked["resolution"], asked["n_train_at_most"], asked["n_eval_at_most"]
    files: list[Path] = []
    if source is None:
        images, texts, _ = scenes(n_train + n_eval, seed=0, resolution=resolution)
        train = n_train
    else:
        training, held_out = source.split(n_train=n_train, n_eval=n_eval)
        records, train = [*training, *held_out], len(training)
        files = [cast(Path, record.image) for record in records]  # in a folder, every image is a file
        images, texts = load_images(files, resolution), [record.text for record in records]
    leakage = find_leakage(images[:train], images[train:], files[:train], files[train:]) if files else Leakage((), ())
    kept = [i for i in range(len(images)) if i - train not in leakage.all]
    _refuse_few(asked["data"], train, len(kept) - train, leakage)
    if leakage.all:
        tell(f"{len(leakage.all)} held-out images are also in the training split ({leakage.counts()}): left out")
    texts = [texts[i] for i in kept]
    if without := sum(not text.strip() for text in texts):
        tell(f"{without} of {len(texts)} images have no text: they are kept, but left out of retrieval")
    store = TextStore.build(texts, encoder, centre_on=range(train))
    about = {
        "asked": asked,
        "texts": texts,
        "protocol": {
            "n_train": train,
            "n_eval": len(kept) - train,
            "without_text": without,
            "leaks_left_out": leakage.counts() if files else "scenes are drawn one by one: none looked for",
            "encoder": store.fingerprint,
        },
    }
    (folder / "corpus.json").unlink(missing_ok=True)
    save_tensors({"images": images[torch.tensor(kept)]}, folder / "images.safetensors")
    store.save(folder / "store.safetensors")
    save_json(folder / "corpus.json", about)  # last: if this file exists, the others are complete
    return about


def _refuse_few(name: str, train: int, held_out: int, leakage: Leakage) -> None:
    """Raise ValueError if a split has fewer than `MIN_IMAGES` images."""
    if train >= MIN_IMAGES and held_out >= MIN_IMAGES:
        return
    why = f", after {len(leakage.all)} that are also in the training split were left out" if leakage.all else ""
    raise ValueError(
        f"{name} gives {train} images to train and {held_out} to test{why}: at least {MIN_IMAGES} of each are "
        "needed; give a folder with more images, or larger --train and --eval"
    )


def _digest(source: ImageTextFolder) -> str:
    """SHA-256 of the names, texts and splits of a folder's records."""
    digest = hashlib.sha256()
    for record in source.records:
        digest.update(f"{record.id}\0{record.text}\0{record.split}\0".encode())
    return digest.hexdigest()
