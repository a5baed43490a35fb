"""Batches of text units from a warm store: ours, Parquet, LMDB, in one run: python benchmarks/store.py.

The corpus is synthetic, with as many units as real long captions have (per image 55.6 words, 39.5 phrases and 6.8
sentences; each distinct word is used 14.4 times, a phrase 2.4 times, a sentence once). Every loader gives the same
batches: 64 images drawn at random, float16, padded, with masks; zero workers, one thread, all files read before. The
rivals hold raw rows, as written by default. LMDB is used in two ways. The common recipe is a Dataset with one pickled
dictionary of arrays per image (one transaction per image, padded by the collate function). Ours is tuned: bare bytes,
one transaction per batch.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from common.machine import machine
from common.result_files import save_results
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tavq_plugin.text import ShardedStore, TextStore
from tavq_plugin.text.manifest import Manifest, shard_path
from tavq_plugin.text.ragged import RaggedRows
from tavq_plugin.types import GRANULARITIES

DIM, BATCH = 384, 64
UNITS = {"word": (55.6, 14.4), "phrase": (39.5, 2.4), "sentence": (6.8, 1.0)}  # per image; uses of each distinct one
TARGETS = {"ours": 20_000, "Parquet": 5, "LMDB": 3}  # images/s; times as fast as
ROUNDS = 5
BATCHES = {"ours": 100, "ours, centred float32": 50, "LMDB, pickled arrays": 10, "LMDB, bare bytes": 10}
BATCHES |= {"Parquet": 2, "Parquet, in order": 10}

Batch = dict[str, tuple[Tensor, Tensor]]


def corpus(images: int, shard: int) -> Iterator[TextStore]:
    """Shards of texts. Frequent words occur far more often than others; each shard has its own units."""
    draw = np.random.default_rng(0)
    for start in range(0, images, shard):
        count = min(shard, images - start)
        lists, table, first = {}, [], 0
        for name, (mean, uses) in UNITS.items():
            lengths = draw.poisson(mean - 1, count) + 1
            distinct = max(1, round(lengths.sum() / uses))
            if name == "word":  # frequent ones far more often
                ids = (distinct * draw.random(lengths.sum()) ** 3).astype(np.int64)
            else:
                ids = draw.integers(0, distinct, lengths.sum())
            offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
            lists[name] = RaggedRows(torch.from_numpy(ids + first), offsets)
            first += distinct
            table.append(torch.from_numpy(draw.standard_normal((distinct, DIM), dtype=np.float32)).half())
        yield TextStore(
            ids=tuple(f"{start + i}.jpg" for i in range(count)),
            table=torch.cat(table),
            vocabulary=tuple(f"unit {start} {i}" for i in range(first)),
            lists=lists,
            means={name: torch.full((DIM,), 0.1) for name in GRANULARITIES},
            fingerprint="synthetic",
        )


def write(folder: Path, images: int, shard: int) -> dict[str, Any]:
    """Write the stores of the same rows; returns their sizes in bytes."""
    schema = pyarrow.schema([(name, pyarrow.binary()) for name in GRANULARITIES])
    bare = lmdb.open(str(folder / "bare.lmdb"), map_size=2**36)
    pickled = lmdb.open(str(folder / "pickled.lmdb"), map_size=2**36)
    shards = raw = 0
    with pyarrow.parquet.ParquetWriter(folder / "rows.parquet", schema) as writer:
        for shards, part in enumerate(corpus(images, shard), 1):
            part.save(shard_path(folder / "ours", shards - 1))
            rows = [
                {name: part.table[rows_of(part, name, i)].numpy().tobytes() for name in GRANULARITIES}
                for i in range(len(part))
            ]
            raw += sum(len(value) for row in rows for value in row.values())
            for i in range(0, len(rows), 64):
                writer.write_table(pyarrow.Table.from_pylist(rows[i : i + 64], schema=schema))
            with bare.begin(write=True) as transaction, pickled.begin(write=True) as other:
                for i, row in enumerate(rows, (shards - 1) * shard):
                    for name, value in row.items():
                        transaction.put(f"{i}/{name}".encode(), value)
                    arrays = {name: np.frombuffer(value, np.float16).reshape(-1, DIM) for name, value in row.items()}
                    other.put(str(i).encode(), pickle.dumps(arrays))
    bare.close()
    pickled.close()
    Manifest("synthetic", shards, images).write(folder / "ours")
    sizes = {
        "ours": sum(path.stat().st_size for path in (folder / "ours").iterdir()),
        "Parquet": (folder / "rows.parquet").stat().st_size,
        "LMDB, bare bytes": (folder / "bare.lmdb" / "data.mdb").stat().st_blocks * 512,
        "LMDB, pickled arrays": (folder / "pickled.lmdb" / "data.mdb").stat().st_blocks * 512,
    }
    return {"raw": raw} | sizes


def rows_of(part: TextStore, name: str, text: int) -> Tensor:
    """The table rows of one text's units."""
    ragged = part.lists[name]
    return ragged.ids[ragged.offsets[text] : ragged.offsets[text + 1]]


def padded(values: list[bytes]) -> tuple[Tensor, Tensor]:
    """Raw rows of some images as one tensor b m d and its mask."""
    return stacked([torch.frombuffer(bytearray(value), dtype=torch.float16).view(-1, DIM) for value in values])


def stacked(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of some images, each m d, as one tensor b m d and its mask."""
    lengths = torch.tensor([len(row) for row in rows])
    batch = pad_sequence(rows, batch_first=True)
    return batch, torch.arange(batch.shape[1]) < lengths[:, None]


class Pickled(Dataset):
    """The common recipe: one key and one transaction for each image's arrays."""

    def __init__(self, file: Path, images: int) -> None:
        self.environment = lmdb.open(str(file), readonly=True, lock=False, readahead=False, meminit=False)
        self.images = images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        with self.environment.begin(write=False) as transaction:
            arrays = pickle.loads(transaction.get(str(index).encode()))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @staticmethod
    def collate(items: list[dict[str, Tensor]]) -> Batch:
        """Padded, with masks."""
        return {name: stacked([item[name] for item in items]) for name in GRANULARITIES}


def loaders(folder: Path, images: int) -> dict[str, Callable[[], Iterator[Batch]]]:
    """Endless batches from each store, already open."""
    store = ShardedStore.open(folder / "ours")
    file = pyarrow.parquet.ParquetFile(folder / "rows.parquet", memory_map=True)
    environment = lmdb.open(str(folder / "bare.lmdb"), readonly=True, lock=False, readahead=False)
    pickled = Pickled(folder / "pickled.lmdb", images)

    def drawn(seed: int) -> RandomSampler:
        return RandomSampler(range(images), True, 10**6, torch.Generator().manual_seed(seed))

    def rows(seed: int) -> DataLoader:
        return DataLoader(range(images), BATCH, sampler=drawn(seed), collate_fn=torch.tensor)

    def ours(centred: bool) -> Iterator[Batch]:
        for batch in rows(0):
            yield {n: (u.embeddings, u.mask) for n, u in store.batch(batch, centred=centred).items()}

    def from_lmdb() -> Iterator[Batch]:
        for batch in rows(1):
            with environment.begin() as transaction:
                yield {n: padded([transaction.get(f"{i}/{n}".encode()) for i in batch.tolist()]) for n in GRANULARITIES}

    def from_parquet() -> Iterator[Batch]:
        for batch in rows(2):
            found = [file.read_row_group(i // 64).slice(i % 64, 1).to_pylist()[0] for i in batch.tolist()]
            yield {n: padded([row[n] for row in found]) for n in GRANULARITIES}

    def parquet_in_order() -> Iterator[Batch]:
        while True:
            for table in file.iter_batches(batch_size=BATCH):
                found = table.to_pylist()
                yield {n: padded([row[n] for row in found]) for n in GRANULARITIES}

    return {
        "ours": lambda: ours(False),
        "ours, centred float32": lambda: ours(True),
        "LMDB, pickled arrays": lambda: iter(DataLoader(pickled, BATCH, sampler=drawn(3), collate_fn=pickled.collate)),
        "LMDB, bare bytes": from_lmdb,
        "Parquet": from_parquet,
        "Parquet, in order": parquet_in_order,
    }


def same(folder: Path, images: int) -> bool:
    """Whether all stores give equal rows for the last image; the table shows it."""
    store = ShardedStore.open(folder / "ours").batch([images - 1], centred=False)
    environment = lmdb.open(str(folder / "bare.lmdb"), readonly=True, lock=False)
    pickled = Pickled(folder / "pickled.lmdb", images)[images - 1]
    table = pyarrow.parquet.ParquetFile(folder / "rows.parquet")
    row = table.read_row_group(table.num_row_groups - 1).to_pylist()[-1]
    with environment.begin() as transaction:
        others = {n: (transaction.get(f"{images - 1}/{n}".encode()), row[n]) for n in GRANULARITIES}
    environment.close()
    own = {n: units.embeddings[0, units.mask[0]] for n, units in store.items()}
    equal = [torch.equal(own[n], padded([value])[0][0]) for n, values in others.items() for value in values]
    return all(equal) and all(torch.equal(own[n], rows) for n, rows in pickled.items())


def measure(folder: Path, images: int, shard: int, batches: Mapping[str, int]) -> dict[str, Any]:
    """Images per CPU and wall second of loaders that take turns: medians, spread, and ratios within a round."""
    sizes = write(folder, images, shard)
    equal = same(folder, images)
    streams = {name: make() for name, make in loaders(folder, images).items()}
    for name, stream in streams.items():
        for _ in range(2 if name.startswith("Parquet") else 2 * images // BATCH):  # maps nearly every page
            next(stream)
    rates: dict[str, list[float]] = {name: [] for name in streams}
    walls: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(ROUNDS):
        for name, stream in streams.items():
            began, wall = time.process_time(), time.perf_counter()
            for _ in range(batches[name]):
                next(stream)
            rates[name].append(BATCH * batches[name] / (time.process_time() - began))
            walls[name].append(BATCH * batches[name] / (time.perf_counter() - wall))
    ratio = {n: statistics.median(a / b for a, b in zip(rates["ours"], r, strict=True)) for n, r in rates.items()}
    return {
        "images": images,
        "equal_rows": equal,
        "bytes": sizes,
        "images_per_cpu_s": {n: [round(f(r)) for f in (statistics.median, min, max)] for n, r in rates.items()},
        "images_per_wall_s": {n: round(statistics.median(r)) for n, r in walls.items()},
        "ours_times_as_fast": {n: round(r, 1) for n, r in ratio.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    sizes = result["bytes"]
    lines = [
        f"# {result['images']:,} images, batches of {BATCH} at random, zero workers",
        "",
        f"{result['machine']}. {result['note']}".strip(),
        f"The stores give {'equal' if result['equal_rows'] else 'UNEQUAL'} rows.",
        "",
        "| loader | MB | of raw float16 rows | images a CPU second, median (range) | a wall second | ours is faster |",
        "|---|---|---|---|---|---|",
    ]
    for name, (median, least, most) in result["images_per_cpu_s"].items():
        size = sizes.get(name) or sizes[name.split(",")[0]]
        lines.append(
            f"| {name} | {size / 1e6:,.0f} | {size / sizes['raw']:.2f} | {median:,} ({least:,}–{most:,}) | "
            f"{result['images_per_wall_s'][name]:,} | "
            f"{result['ours_times_as_fast'][name]}× |"
        )
    lines += ["", "Targets: a third of the raw bytes; 20,000 images/s; 5× a Parquet and 3× an LMDB loader."]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None, *, batches: Mapping[str, int] = BATCHES) -> None:
    """Measure, print and write benchmarks/results/store.{json,md}; tests give `batches`, the batches per round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--shard", type=int, default=4096, help="images per shard")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--scratch", type=Path, default=None, help="where the stores are made, and removed")
    parser.add_argument("--note", default="", help="a line about the machine for the table")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    pyarrow.set_cpu_count(1)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        result = measure(Path(folder), arguments.images, arguments.shard, batches)
    result |= {"machine": f"{machine()}, one thread", "note": arguments.note}
    page = table(result)
    print(page)
    save_results(arguments.out / "store.json", result, page)


if __name__ == "__main__":
    main()
