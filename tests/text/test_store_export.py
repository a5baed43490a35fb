"""What a store says of itself, and what it gives to other programs."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.preprocessing.prepare_store import prepare
from tavq_plugin.text import ShardedStore, TextEncoder
from tavq_plugin.text.store_export import export_store
from tavq_plugin.text.store_info import store_info
from tavq_plugin.types import GRANULARITIES


@pytest.fixture
def store(tmp_path, bert_folder):
    texts = ["A red car runs.", "", "Two men sleep. A dog runs."]
    rows = [json.dumps({"id": f"i{i}", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    load = lambda: TextEncoder.from_pretrained(bert_folder, dtype=torch.float32)  # noqa: E731
    prepare(tmp_path / "a.jsonl", tmp_path / "store", load, shard_size=2, progress=False)
    return tmp_path / "store"


def expected(store):
    """Id, granularity, unit and embedding of each unit, by the store's own reader."""
    opened, rows = ShardedStore.open(store), []
    for row, name in enumerate(opened.ids):
        for granularity in GRANULARITIES:
            units, batch = (
                opened.units(row, granularity),
                opened.batch(rows=[row], centred=False)[granularity].embeddings,
            )
            rows += [(name, granularity, unit, batch[0, i].half()) for i, unit in enumerate(units)]
    return rows


def test_a_store_is_described(store):
    info = store_info(store)
    assert (info.texts, info.without_units, info.shards) == (3, 1, 2)
    assert sum(info.units.values()) == len(expected(store))
    assert ("texts", "3, of them 1 without a unit") in list(info.rows())


def test_units_go_to_parquet_and_numpy(store, tmp_path):
    rows = expected(store)
    assert export_store(store, tmp_path / "a.parquet") == export_store(store, tmp_path / "arrays") == len(rows)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    arrays = {name: np.load(tmp_path / "arrays" / f"{name}.npy") for name in ("embeddings", "text", "granularity")}
    strings = json.loads((tmp_path / "arrays/strings.json").read_text())
    for i, (name, granularity, unit, vector) in enumerate(rows):
        assert (table[i]["id"], table[i]["granularity"], table[i]["unit"]) == (name, granularity, unit)
        assert np.array_equal(np.array(table[i]["embedding"], dtype=np.float16), vector.numpy())
        assert (strings["ids"][arrays["text"][i]], GRANULARITIES[arrays["granularity"][i]]) == (name, granularity)
        assert strings["units"][i] == unit and np.array_equal(arrays["embeddings"][i], vector.numpy())
    with pytest.raises(FileExistsError, match="give --out another name"):
        export_store(store, tmp_path / "a.parquet")


def test_a_flipped_bit_is_found_by_prepare_too(tmp_path, store, bert_folder):
    command = ["prepare", "--captions", tmp_path / "a.jsonl", "--out", store, "--shard-size", 2, "--verify"]
    command += ["--encoder", bert_folder]
    whole = CliRunner().invoke(app, list(map(str, command)), env={"COLUMNS": "300"})
    assert (whole.exit_code, "no fault found" in whole.output) == (0, True), whole.output
    file = sorted(store.glob("shard-*"))[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    damaged = CliRunner().invoke(app, list(map(str, command)), env={"COLUMNS": "300"})
    assert damaged.exit_code == 1 and file.name in damaged.output and "Delete the named shards" in damaged.output
    without = CliRunner().invoke(app, list(map(str, command[:7] + command[8:])), env={"COLUMNS": "300"})
    assert without.exit_code == 0
