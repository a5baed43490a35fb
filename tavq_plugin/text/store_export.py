"""Write the units of a store in formats of other programs: Parquet, or arrays of NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tavq_plugin.io.atomic import save_json, whole_file
from tavq_plugin.text.manifest import Manifest, finished_shard_paths
from tavq_plugin.text.shard_file import read_shard
from tavq_plugin.types import GRANULARITIES


def export_store(folder: str | Path, out: str | Path) -> int:
    """Write one row per unit of each text, in the order of the store; returns the number of units.

    A `.parquet` file gets the columns id, granularity, unit and embedding (half precision, as stored). Any other name
    is a new folder: embeddings.npy (n d, float16), text.npy (n, number of the text), granularity.npy (n, its number),
    and strings.json with the ids, the granularities and the n units.

    Raises FileExistsError if `out` exists, and ValueError if the store is not finished or a shard is truncated.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists: give --out another name")
    return _parquet(folder, out) if out.suffix.lower() == ".parquet" else _arrays(folder, out)


def _parts(folder: Path) -> Iterator[dict[str, Any]]:
    """The units of each shard, as columns."""
    manifest = Manifest.read(folder)
    for path in finished_shard_paths(folder, manifest):
        shard = read_shard(path)
        manifest.require_fingerprint(shard.fingerprint, path)
        ids = [shard.ids[i] for i in range(len(shard.ids))]
        words = [shard.vocabulary[i] for i in range(len(shard.vocabulary))]
        owners, kinds, rows = [], [], []
        for number, name in enumerate(GRANULARITIES):
            own = shard.lists[name].ids.numpy()
            owners.append(np.repeat(np.arange(len(ids)), np.diff(shard.lists[name].offsets.numpy())))
            kinds.append(np.full(len(own), number, dtype=np.uint8))
            rows.append(own)
        owner, kind, row = (np.concatenate(each) for each in (owners, kinds, rows))
        order = np.argsort(owner, kind="stable")  # text by text, each with its granularities in order
        owner, kind, row = owner[order], kind[order], row[order]
        yield {"ids": ids, "owner": owner, "kind": kind, "units": [words[i] for i in row], "row": row,
               "table": shard.table.half().numpy()}  # fmt: skip


def _parquet(folder: Path, out: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    units, writer = 0, None
    with whole_file(out) as partial:
        try:
            for part in _parts(folder):
                flat = pyarrow.array(part["table"][part["row"]].reshape(-1))
                columns = {
                    "id": pyarrow.array([part["ids"][i] for i in part["owner"]], pyarrow.string()),
                    "granularity": pyarrow.array([GRANULARITIES[i] for i in part["kind"]], pyarrow.string()),
                    "unit": pyarrow.array(part["units"], pyarrow.string()),
                    "embedding": pyarrow.FixedSizeListArray.from_arrays(flat, part["table"].shape[1]),
                }
                table = pyarrow.table(columns)
                writer = writer or pyarrow.parquet.ParquetWriter(partial, table.schema)
                writer.write_table(table)
                units += len(part["row"])
        finally:
            if writer is not None:
                writer.close()
    return units


def _arrays(folder: Path, out: Path) -> int:
    parts = list(_parts(folder))
    starts = np.cumsum([0, *(len(part["ids"]) for part in parts)])
    arrays = {
        "embeddings": np.concatenate([part["table"][part["row"]] for part in parts]),
        "text": np.concatenate([part["owner"] + start for part, start in zip(parts, starts, strict=False)]),
        "granularity": np.concatenate([part["kind"] for part in parts]),
    }
    out.mkdir(parents=True)
    for name, array in arrays.items():
        with whole_file(out / f"{name}.npy") as partial, open(partial, "wb") as file:
            np.save(file, array)
    strings = {"ids": [name for part in parts for name in part["ids"]], "granularities": list(GRANULARITIES)}
    save_json(out / "strings.json", strings | {"units": [unit for part in parts for unit in part["units"]]})  # last
    return len(arrays["text"])
