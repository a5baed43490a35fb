"""The corpus of a comparison: images and texts, split without leakage, encoded once, kept in one folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.images import load_images
from tavq_plugin.data.leakage import burst_members, find_leakage
from tavq_plugin.data.read import without_text_reason
from tavq_plugin.data.read_settings import ReadSettings
from tavq_plugin.data.records import Record
from tavq_plugin.data.splits import Split
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.io.atomic import read_json, save_json, save_tensors
from tavq_plugin.io.counted import counted
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.moved import old_names
from tavq_plugin.text.store import TextStore

__getattr__ = old_names(__name__)  # names that were renamed

MIN_IMAGES = 2  # per split
MAKER = "the corpus of a run"
FILES = ("corpus.json", "images.safetensors", "test.safetensors", "store.safetensors")
SAME_FILE = "held-out images whose file is also in the training split"
SAME_PICTURE = "held-out images that look like one of the training split"
BURST = "training or tune images that show the same event as an image of another split"
ObjectBoxes = Sequence[Mapping[str, Any]]  # of one image: {"phrase", "box"} of each object


@dataclass(frozen=True)
class Corpus:
    """Images and texts of a run: rows 0..n_train-1 train, the others are held out, and all from one split."""

    name: str
    images: Tensor  #: n 3 r r uint8
    texts: Sequence[str]  #: n
    store: TextStore  #: n rows, centred on the training rows
    n_train: int
    split: Split = "tune"  #: of the held-out rows
    boxes: Sequence[ObjectBoxes] = ()  #: n; () if no image has any

    @property
    def train_rows(self) -> range:
        """Rows of the training split."""
        return range(self.n_train)

    @property
    def held_out_rows(self) -> range:
        """Rows of the held-out split."""
        return range(self.n_train, len(self.images))


class ReadSplits(NamedTuple):
    """Images and texts of all splits, in the order train, tune, test."""

    images: Tensor  # n 3 r r uint8
    texts: list[str]
    boxes: list[list[dict[str, Any]]]
    sizes: dict[str, int]  # split → number of images
    left_out: dict[str, int]  # reason → number of images


def load_or_build_corpus(
    folder: Path,
    data: Path | None,
    resolution: int,
    *,
    n_train: int,
    n_eval: int,
    tell: Callable[[str], None],
    settings: ReadSettings | None = None,
) -> tuple[Corpus, dict[str, Any]]:
    """The corpus in a folder, with its tune split held out, and its description; built if the folder has none.

    The folder holds the test split too, which only `load_corpus(folder, split="test")` reads. Held-out images that are
    also in the training split are left out and counted; so are training images of the same burst as a held-out image.

    Args:
        folder: Where the corpus is kept.
        data: A folder of images with text. None: synthetic scenes.
        resolution: Side of the images.
        n_train: Training images, at most.
        n_eval: Images to tune on, at most. The test split is always whole.
        tell: Called with each message to the user.
        settings: The fields with id and text, and the limits of what is read. Default: `ReadSettings()`.

    Raises:
        ValueError: A split has fewer than two images, or the folder holds a corpus of other data or numbers.
        FileExistsError: A file that we did not write is in the way.
    """
    asked = {"data": "scenes" if data is None else str(data), "resolution": resolution}
    asked |= {"n_train_at_most": n_train, "n_eval_at_most": n_eval}
    source = None
    if data is not None:
        source = ImageTextFolder.read(data, settings)
        if source.skipped:
            tell(source.skipped)
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


def load_corpus(folder: Path, *, split: Split = "tune") -> Corpus:
    """The corpus that `load_or_build_corpus` wrote to a folder, with the tune or the test split held out.

    Raises FileNotFoundError if there is none, and ValueError if it was made before there were test splits.
    """
    about = read_json(folder / "corpus.json", strict=False)
    if about is None:
        raise FileNotFoundError(f"no corpus.json in {folder}: run tavq compare, which writes it")
    protocol = about["protocol"]
    train, tune, test = protocol["n_train"], protocol["n_eval"], protocol.get("n_test", 0)
    images = load_file(folder / "images.safetensors")["images"]
    rows = [*range(train + tune)]
    if split == "test":
        if not test:
            raise ValueError(
                f"{folder} has no test split, because it was made by an earlier release or from too few images: build "
                "a new corpus in another folder"
            )
        rows = [*range(train), *range(train + tune, train + tune + test)]
        images = torch.cat([images[:train], load_file(folder / "test.safetensors")["images"]])
    store = TextStore.load(folder / "store.safetensors").subset(torch.tensor(rows))
    store = replace(store, ids=tuple(map(str, range(len(rows)))))  # a row's number is its id
    texts, boxes = ([side[row] for row in rows] if side else [] for side in (about["texts"], about.get("boxes")))
    return Corpus(about["asked"]["data"], images, texts, store, train, split, boxes)


def read_splits(
    source: ImageTextFolder | None, resolution: int, *, n_train: int, n_eval: int, tell: Callable[[str], None]
) -> ReadSplits:
    """Images and texts of a folder, or of drawn scenes if `source` is None; no picture is in two splits.

    What is left out is counted and told. Raises ValueError if fewer than two images remain to train or to tune on.
    """
    if source is None:
        images, texts, drawn = scenes(n_train + 2 * n_eval, seed=0, resolution=resolution)
        sizes = {"train": n_train, "tune": n_eval, "test": n_eval}
        return ReadSplits(images, texts, [list(scene.boxes) for scene in drawn], sizes, {})
    if source.without_text == len(source.records):
        fields = [name for record in source.records for name in record.fields]
        raise ValueError(without_text_reason(source.folder, len(source.records), fields, source.settings))
    splits = source.split(n_train=n_train, n_eval=n_eval)
    records = [record for split in splits for record in split]
    images = load_images([cast(Path, record.image) for record in records], resolution)  # files, or the bytes of files
    names = [name for name, split in zip(splits._fields, splits, strict=True) for _ in split]
    left_out = left_out_records(images, records, names)
    reasons = dict(Counter(left_out.values()))
    kept = [i for i in range(len(records)) if i not in left_out]
    sizes = {name: sum(names[i] == name for i in kept) for name in splits._fields}
    for reason, count in reasons.items():
        tell(f"left out {count}: {reason}")
    if min(sizes["train"], sizes["tune"]) < MIN_IMAGES:
        why = f" ({counted(len(left_out), 'images')} left out)" if left_out else ""
        raise ValueError(
            f"{source.folder} gives {counted(sizes['train'], 'images')} to train and {sizes['tune']} to tune on{why}: "
            f"at least {MIN_IMAGES} of each are needed; give a folder with more images, or larger --train and --eval"
        )
    texts = [records[i].text for i in kept]
    if without := sum(not text.strip() for text in texts):
        tell(f"{without} of {len(texts)} without text: these images are kept, but left out of retrieval")
    return ReadSplits(images[torch.tensor(kept)], texts, [list(records[i].boxes) for i in kept], sizes, reasons)


def left_out_records(images: Tensor, records: Sequence[Record], names: Sequence[str]) -> dict[int, str]:
    """The rows that are left out because another split has the same picture, with the reason; n 3 r r uint8."""
    places = {split: [i for i, name in enumerate(names) if name == split] for split in ("train", "tune", "test")}
    files = [cast("Path | bytes", record.image) for record in records]
    left_out: dict[int, str] = {}
    held_out = [*places["tune"], *places["test"]]
    leakage = find_leakage(
        images[places["train"]], images[held_out], [files[i] for i in places["train"]], [files[i] for i in held_out]
    )
    for reason, positions in ((SAME_FILE, leakage.same_file), (SAME_PICTURE, leakage.same_hash)):
        left_out |= {held_out[i]: reason for i in positions}
    for one, others in (("train", ("tune", "test")), ("tune", ("test",))):
        here = [i for i in places[one] if i not in left_out]
        there = [i for other in others for i in places[other] if i not in left_out]
        texts = [[records[i].text for i in side] for side in (here, there)]
        left_out |= {here[i]: BURST for i in burst_members(images[here], texts[0], images[there], texts[1])}
    return left_out


def _build(
    folder: Path, source: ImageTextFolder | None, asked: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Write the files of the corpus, and return the content of corpus.json."""
    from tavq_plugin.text.encoder import offline_encoder

    splits = read_splits(
        source, asked["resolution"], n_train=asked["n_train_at_most"], n_eval=asked["n_eval_at_most"], tell=tell
    )
    train, tune, test = (splits.sizes[name] for name in ("train", "tune", "test"))
    encoder = offline_encoder()
    store = TextStore.build(splits.texts, encoder, centre_on=range(train))
    about = {
        "asked": asked,
        "texts": splits.texts,
        "boxes": splits.boxes if any(splits.boxes) else [],
        "protocol": {
            "n_train": train,
            "n_eval": tune,
            "n_test": test,
            "without_text": sum(not text.strip() for text in splits.texts),
            "left_out": splits.left_out if source else "scenes are drawn one by one: none looked for",
            "encoder": store.fingerprint,
        },
    }
    (folder / "corpus.json").unlink(missing_ok=True)
    save_tensors({"images": splits.images[: train + tune]}, folder / "images.safetensors")
    save_tensors({"images": splits.images[train + tune :]}, folder / "test.safetensors")
    store.save(folder / "store.safetensors")
    save_json(folder / "corpus.json", about)  # last: if this file exists, the others are complete
    return about


def _digest(source: ImageTextFolder) -> str:
    """SHA-256 of the names, texts and splits of a folder's records."""
    digest = hashlib.sha256()
    for record in source.records:
        digest.update(f"{record.id}\0{record.text}\0{record.split}\0".encode())
    return digest.hexdigest()
