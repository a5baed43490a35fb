"""Whose text is it: ids are strings in one Unicode form, and a number that could be a row or an id is refused."""

import pytest
import torch

from tavq_plugin.text import ShardedStore, TextStore
from tavq_plugin.text.manifest import Manifest, shard_path
from tavq_plugin.text.text_id import text_id

TEXTS = ["A red wall.", "A blue boat."]


@pytest.fixture(params=["one file", "shards"])
def store_of(request, encoder, tmp_path):
    def make(ids):
        store = TextStore.build(TEXTS, encoder, ids)
        if request.param == "one file":
            return store
        store.save(shard_path(tmp_path / "s", 0))
        Manifest(store.fingerprint, 1, 2).write(tmp_path / "s")
        return ShardedStore.open(tmp_path / "s")

    return make


@pytest.mark.parametrize(
    ("ids", "number", "words"),
    [
        (["1", "0"], 1, "1 is both a row number and the id of row 0"),
        (["5", "7"], 0, "no text has the id 0, and row 0 has the id '5'"),
        (["0", "7"], 7, "7 is both a row number and the id of row 1"),
    ],
)
def test_a_number_that_could_be_a_row_or_an_id_is_refused(store_of, ids, number, words):
    store = store_of(ids)
    for ask in (store.batch, store.rows, store.subset):
        with pytest.raises(ValueError, match=words):
            ask([number])
    with pytest.raises(ValueError, match=words):
        store.units(number, "sentence")


def test_ids_and_row_numbers_are_different_arguments(store_of):
    store = store_of(["1", "0"])
    assert store.units("1", "sentence") == ["A red wall."]
    by_id, by_row = store.batch(["1"])["sentence"], store.batch(rows=[1])["sentence"]
    assert torch.equal(by_row.embeddings, store.batch(["0"])["sentence"].embeddings)
    assert not torch.equal(by_id.embeddings, by_row.embeddings)
    assert torch.equal(by_row.embeddings, store.batch(torch.tensor([1]))["sentence"].embeddings)
    assert store.rows(range(2)).tolist() == [0, 1]
    for wrong in ({}, {"texts": ["1"], "rows": [0]}, {"rows": ["1"]}):
        with pytest.raises(TypeError, match="ids"):
            store.batch(**wrong)


def test_row_numbers_in_a_list_stay_where_nothing_is_ambiguous(store_of):
    assert store_of(["0", "1"]).rows([1, 0]).tolist() == [1, 0]
    assert store_of(["a.png", "b.png"]).rows([1, "a.png"]).tolist() == [1, 0]


def test_a_decomposed_name_finds_its_text(store_of):
    store = store_of(["cafe\u0301.png", "b.png"])
    assert store.rows(["caf\u00e9.png", "cafe\u0301.png"]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="string or a whole number, got float"):
        text_id(1.0)
