"""Whitening: equal spread in every direction, reused for held-out texts, never mixed with plain stores."""

import pytest
import torch

from tavq_plugin.text import ShardedStore, TextStore
from tavq_plugin.text.manifest import WHITENING_FILE, Manifest, find_faults, merge_stores, shard_path
from tavq_plugin.text.whitening import Whitening, whiten

TEXTS = ["A red car. The dog sleeps on a red boat.", "Two men in a blue boat.", "", "The sky. A house. A long dog."]


def save(folder, encoder, texts, size=2):
    for number, start in enumerate(range(0, len(texts), size)):
        ids = [f"{folder.name}-{i}" for i in range(start, min(len(texts), start + size))]
        part = TextStore.build(texts[start : start + size], encoder, ids, dtype=torch.float32)
        part.save(shard_path(folder, number))
    Manifest(part.fingerprint, number + 1, len(texts)).write(folder)
    return folder


def test_rows_have_equal_spread_in_every_direction():
    torch.manual_seed(0)
    rows = torch.randn(4000, 6) @ torch.randn(6, 6) + 3
    uses = torch.randint(0, 4, (4000,))
    whitening = Whitening.fit([(rows[:1000], uses[:1000]), (rows[1000:], uses[1000:])], shrink=0)
    loop = (rows - whitening.mean) @ whitening.matrix
    repeated = loop.repeat_interleave(uses, 0).double()
    assert repeated.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(repeated.T @ repeated / len(repeated), torch.eye(6).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(whitening(rows), torch.nn.functional.normalize(loop, dim=-1))
    only_centred = Whitening.fit([(rows, uses)], shrink=1).matrix
    torch.testing.assert_close(only_centred, only_centred[0, 0] * torch.eye(6), atol=1e-5, rtol=0)


def test_held_out_texts_are_whitened_like_the_training_store(tmp_path, encoder):
    train, test = save(tmp_path / "train", encoder, TEXTS), save(tmp_path / "test", encoder, ["A cat.", "A blue dog."])
    made = whiten(train, tmp_path / "w")
    assert (made.texts, made.shards) == (4, 2) and not list(find_faults(tmp_path / "w"))
    store, plain = ShardedStore.open(tmp_path / "w"), ShardedStore.open(train)
    assert list(store.ids) == list(plain.ids) and store.units(0, "phrase") == plain.units(0, "phrase")
    whitening = Whitening.load(tmp_path / "w")
    raw, white = plain.batch([0], centred=False)["word"], store.batch([0], centred=False)["word"]
    torch.testing.assert_close(white.embeddings, whitening(raw.embeddings), atol=1e-5, rtol=1e-4)
    whiten(test, tmp_path / "v", like=tmp_path / "w")
    held_out = ShardedStore.open(tmp_path / "v").with_mean_of(store)
    assert held_out.fingerprint == store.fingerprint != plain.fingerprint
    assert merge_stores([tmp_path / "w", tmp_path / "v"], tmp_path / "m").texts == 6
    assert Whitening.load(tmp_path / "m").name == whitening.name


def test_unsuitable_stores_and_settings_are_refused(tmp_path, encoder, bert_folder):
    train = save(tmp_path / "train", encoder, TEXTS)
    whiten(train, tmp_path / "w")
    other = save(tmp_path / "other", type(encoder).from_pretrained(bert_folder, pooling="cls"), TEXTS)
    for call, words in (
        (lambda: whiten(tmp_path / "w", tmp_path / "x"), "whitened already"),
        (lambda: whiten(other, tmp_path / "x", like=tmp_path / "w"), "do not mix"),
        (lambda: whiten(train, tmp_path / "x", like=train), "has no whitening"),
        (lambda: merge_stores([train, tmp_path / "w"], tmp_path / "x"), "do not mix"),
        (lambda: whiten(train, tmp_path / "x", shrink=2), "shrink=2"),
        (lambda: whiten(save(tmp_path / "none", encoder, [""]), tmp_path / "x"), "no units"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
        assert not (tmp_path / "x").exists()
    with pytest.raises(FileExistsError, match="give a new folder"):
        whiten(train, tmp_path / "w")
    (tmp_path / "w" / WHITENING_FILE).write_bytes((tmp_path / "w" / WHITENING_FILE).read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="did not make this store"):
        Whitening.load(tmp_path / "w")
