"""A sharded store equals a store in one file; stores merge, and different stores refuse to mix."""

import json
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from tavq_plugin.text import ShardedStore, TextStore
from tavq_plugin.text.manifest import Manifest, append_stores, find_faults, merge_stores, shard_path
from tavq_plugin.text.shard_file import PackedStrings
from tavq_plugin.types import GRANULARITIES

TEXTS = ["A red car. The dog sleeps on a red boat.", "", "Two men in a blue boat.", None, "The sky. A house. A dog."]
IDS = ["a.png", "b.png", "ç.png", "d.png", "e.png"]


@pytest.fixture
def whole(encoder):
    return TextStore.build(TEXTS, encoder, IDS)


def save(folder, encoder, ranges, texts=TEXTS, ids=IDS):
    for number, rows in enumerate(ranges):
        part = TextStore.build([texts[r] for r in rows], encoder, [ids[r] for r in rows])
        part.save(shard_path(folder, number))
    Manifest(part.fingerprint, len(ranges), sum(map(len, ranges))).write(folder)
    return folder


@pytest.fixture
def store(tmp_path, encoder):
    return ShardedStore.open(save(tmp_path / "s", encoder, [[0, 1], [2], [3, 4]]))


@pytest.mark.parametrize("rows", [[4, 0, 2, 1], ["ç.png"], ["e.png", "d.png"], [1, 3], [0, 0], []])
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("centred", [True, False])
def test_a_batch_equals_that_of_one_store(whole, store, rows, device, centred):
    ours, theirs = store.batch(rows, device, centred=centred), whole.batch(rows, centred=centred)
    for name in GRANULARITIES:
        assert torch.equal(ours[name].mask, theirs[name].mask)
        torch.testing.assert_close(
            ours[name].embeddings.float(), theirs[name].embeddings, atol=2e-3, rtol=0, check_stride=False
        )
        assert not ours[name].embeddings[~ours[name].mask].any()
    if not centred:
        assert ours["word"].embeddings.dtype == torch.float16


def test_means_units_and_counts_equal_those_of_one_store(whole, store):
    for name in GRANULARITIES:
        torch.testing.assert_close(store.mean(name), whole.mean(name), atol=1e-5, rtol=1e-4)
        for row in range(5):
            assert store.units(row, name) == whole.units(row, name)
    counts = store.counts()
    assert {key: counts[key] for key in ("texts", "without_text", "in_pieces", "unread", *GRANULARITIES)} == {
        key: value for key, value in whole.counts().items() if key in counts
    }
    assert list(store.ids) == IDS


def test_in_memory_holds_each_unit_once(whole, store):
    copy = store.subset([4, 0, 1, 2, 3]).in_memory()
    assert copy.ids == tuple(IDS[i] for i in (4, 0, 1, 2, 3))
    assert sorted(copy.vocabulary) == sorted(whole.vocabulary)
    for name in GRANULARITIES:
        torch.testing.assert_close(
            copy.batch(IDS)[name].embeddings, whole.batch(IDS)[name].embeddings, atol=2e-3, rtol=0
        )


def test_a_subset_keeps_order_and_means(store):
    part = store.subset(["e.png", "a.png"])
    assert len(part) == 2 and part.units(0, "phrase") == store.units(4, "phrase")
    assert torch.equal(part.batch([1])["word"].embeddings, store.batch(["a.png"])["word"].embeddings)
    with pytest.raises(KeyError, match="no text for 'b.png'"):
        part.batch(["b.png"])
    assert part.mean("word") is store.mean("word")


def test_a_pickle_holds_the_path_and_not_the_content(store):
    part = store.subset(["e.png", "a.png"])
    sent = pickle.dumps(part)
    assert b"dog" not in sent and b"e.png" not in sent
    copy = pickle.loads(sent)
    assert list(copy.ids) == ["e.png", "a.png"]
    assert torch.equal(copy.batch([0])["word"].embeddings, part.batch([0])["word"].embeddings)


def test_workers_send_row_numbers_only(store):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return torch.full((3, 2, 2), float(i)), IDS[i]

    loader = DataLoader(Pairs(), batch_size=2, collate_fn=store.collate)
    batches = list(loader)
    assert [rows.tolist() for _, rows in batches] == [[0, 1], [2, 3], [4]]
    images, rows = batches[1]
    assert images.shape == (2, 3, 2, 2) and store.batch(rows)["word"].mask.shape[0] == 2
    assert pickle.loads(pickle.dumps(rows)).dtype == torch.int64


def test_stores_merge_and_append_without_encoding(tmp_path, encoder, whole):
    first, second = (save(tmp_path / n, encoder, r) for n, r in (("x", [[0, 1]]), ("y", [[2], [3, 4]])))
    merged = merge_stores([first, second], tmp_path / "m")
    assert (merged.shards, merged.texts) == (3, 5)
    assert not list(find_faults(tmp_path / "m"))
    appended = append_stores(first, [second])
    assert appended == merged
    for folder in (tmp_path / "m", first):
        ours = ShardedStore.open(folder)
        torch.testing.assert_close(
            ours.batch(IDS)["word"].embeddings, whole.batch(IDS)["word"].embeddings, atol=2e-3, rtol=0
        )


def test_mixed_or_repeated_stores_are_refused_and_not_changed(tmp_path, encoder, bert_folder):
    first = save(tmp_path / "x", encoder, [[0, 1]])
    other = save(tmp_path / "y", type(encoder).from_pretrained(bert_folder, pooling="cls"), [[2]])
    with pytest.raises(ValueError, match="do not mix"):
        append_stores(first, [other])
    with pytest.raises(ValueError, match=r"id 'a.png' of .* is in another shard too"):
        append_stores(first, [first])
    with pytest.raises(FileExistsError, match="append to it"):
        merge_stores([first], first)
    assert len(list(first.iterdir())) == 2 and len(ShardedStore.open(first)) == 2
    shard_path(other, 0).rename(shard_path(first, 1))
    Manifest(Manifest.read(first).fingerprint, 2, 3).write(first)
    with pytest.raises(ValueError, match="do not mix"):
        ShardedStore.open(first)
    assert "of other units" in [fault.reason[:14] for fault in find_faults(first)]


def test_verify_names_each_fault(tmp_path, encoder):
    folder = save(tmp_path / "s", encoder, [[0], [1], [2], [3], [4]])
    flipped = bytearray(shard_path(folder, 2).read_bytes())
    flipped[-3] ^= 1
    shard_path(folder, 2).write_bytes(flipped)
    shard_path(folder, 1).unlink()
    shard_path(folder, 3).write_bytes(b"")
    shard_path(folder, 4).write_bytes(shard_path(folder, 0).read_bytes())
    shard_path(folder, 7).write_bytes(shard_path(folder, 0).read_bytes())
    faults = {(fault.path.name[8:11], fault.reason.split(":")[0]) for fault in find_faults(folder)}
    assert faults == {
        ("001", "missing"),
        ("002", "its content has changed since it was written"),
        ("003", "truncated or not a shard"),
        ("004", "1 of its ids are in an earlier shard too"),
        ("007", "not in the manifest"),
        ("007", "1 of its ids are in an earlier shard too"),
    }


def test_a_missing_or_unfinished_store_says_what_to_do(tmp_path, encoder):
    with pytest.raises(FileNotFoundError, match="run tavq prepare"):
        ShardedStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not a manifest"):
        ShardedStore.open(tmp_path)
    folder = save(tmp_path / "s", encoder, [[0]])
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": "x", "format": 9}))
    with pytest.raises(ValueError, match="format 9"):
        ShardedStore.open(folder)
    Manifest("x").write(folder)
    with pytest.raises(ValueError, match="not finished"):
        ShardedStore.open(folder)


def test_packed_strings_read_like_a_list():
    strings = ["", "café", "🙂", "a"]
    packed = PackedStrings.pack(strings)
    assert (list(packed), packed[-1], packed[1:3]) == (strings, "a", ["café", "🙂"])
    with pytest.raises(IndexError):
        packed[4]
    assert list(PackedStrings.pack([])) == []
