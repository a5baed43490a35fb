"""The store against plain loops: padding, masks, centring, subsets, saving."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tavq_plugin.text import ShardedStore, TextCache, TextStore, split
from tavq_plugin.text.manifest import Manifest, shard_path
from tavq_plugin.types import GRANULARITIES, TextSource, Units

TEXTS = ["A red car. The dog sleeps on a red boat.", "", "Two men in a blue boat.", None, "The sky. A house. A dog."]
IDS = ["a.png", "b.png", "c.png", "d.png", "e.png"]


@pytest.fixture
def store(encoder):
    return TextStore.build(TEXTS, encoder, IDS, dtype=torch.float32)


def by_hand(encoder, rows, granularity, fit):
    """Centred, normalised unit embeddings, one text at a time; the mean over all units of the texts in `fit`."""
    vectors = [encoder.encode(split(text).texts(granularity)) for text in TEXTS]
    mean = torch.cat([vectors[row] for row in fit]).mean(0)
    return [normalize(vectors[row] - mean, dim=-1) for row in rows]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fit", [[0, 1, 2, 3, 4], [0, 2]])
def test_a_batch_equals_a_plain_loop(encoder, granularity, fit):
    store = TextStore.build(TEXTS, encoder, IDS, centre_on=fit, dtype=torch.float32)
    rows = [4, 1, 0]
    units = store.batch(rows)[granularity]
    assert isinstance(units, Units)
    for row, loop in enumerate(by_hand(encoder, rows, granularity, fit)):
        assert units.mask[row].tolist() == [True] * len(loop) + [False] * (units.mask.shape[1] - len(loop))
        torch.testing.assert_close(units.embeddings[row, : len(loop)], loop, atol=1e-5, rtol=1e-5)
        assert not units.embeddings[row, len(loop) :].any()


def test_uncentred_units_are_those_of_the_encoder(store, encoder):
    units = store.batch(["c.png"], centred=False)["word"]
    torch.testing.assert_close(units.embeddings[0], encoder.encode(["two", "men", "blue", "boat"]))


def test_held_out_texts_do_not_change_the_store_means(encoder):
    changed = [*TEXTS[:4], "Nothing like it was."]
    before = TextStore.build(TEXTS, encoder, IDS, centre_on=IDS[:3])
    after = TextStore.build(changed, encoder, IDS, centre_on=IDS[:3])
    for granularity in GRANULARITIES:
        torch.testing.assert_close(before.mean(granularity), after.mean(granularity))


def test_a_held_out_store_takes_the_mean_of_the_training_store(encoder):
    whole = TextStore.build(TEXTS, encoder, IDS, centre_on=[0, 2])
    train = TextStore.build([TEXTS[0], TEXTS[2]], encoder)
    held_out = TextStore.build(TEXTS[4:], encoder, IDS[4:]).with_mean_of(train)
    for granularity in GRANULARITIES:
        torch.testing.assert_close(
            held_out.batch([0])[granularity].embeddings, whole.batch(["e.png"])[granularity].embeddings
        )


def test_empty_texts_are_kept_masked_and_counted(store):
    batch = store.batch([1, 3])
    for units in batch.values():
        assert units.embeddings.shape == (2, 1, 32)
        assert not units.mask.any()
        assert not units.embeddings.any()
    counts = store.counts()
    assert counts["texts"] == 5
    assert counts["without_text"] == 2
    assert counts["sentence"] == 6
    assert counts["distinct"] == len(store.vocabulary) == len(store.table) == len(set(store.vocabulary))


def test_a_store_of_empty_texts(encoder):
    store = TextStore.build(["", None], encoder)
    assert store.batch([0, 1])["word"].embeddings.shape == (2, 1, 32)
    assert len(TextStore.build([], encoder)) == 0


def test_the_only_unit_of_a_corpus_keeps_its_direction(encoder):
    units = TextStore.build(["Dog."], encoder, dtype=torch.float32).batch([0])["word"]
    torch.testing.assert_close(units.embeddings[0], encoder.encode(["dog"]))


def test_units_and_frequency(store):
    assert store.units("a.png", "phrase")[:2] == ["red car", "dog"]
    assert store.units(1, "word") == []
    frequency = store.unit_frequency("word")
    assert frequency["dog"] == frequency["boat"] == 2
    assert frequency["red"] == 1  # twice, but in one text
    assert list(frequency.values()) == sorted(frequency.values(), reverse=True)


def test_subset_keeps_order_means_and_table(store):
    part = store.subset(["e.png", "b.png", "a.png"])
    assert part.ids == ("e.png", "b.png", "a.png")
    for granularity in GRANULARITIES:
        torch.testing.assert_close(
            part.batch([0, 1, 2])[granularity].embeddings, store.batch([4, 1, 0])[granularity].embeddings
        )
        assert part.units(2, granularity) == store.units(0, granularity)
    assert part.table is store.table
    assert part.counts()["without_text"] == 1
    assert "blue" not in part.unit_frequency()


def test_half_precision_is_the_default_and_close(encoder, store):
    half = TextStore.build(TEXTS, encoder, IDS)
    assert half.table.dtype == torch.float16
    assert half.batch([0])["word"].embeddings.dtype == torch.float32
    torch.testing.assert_close(
        half.batch(IDS)["word"].embeddings, store.batch(IDS)["word"].embeddings, atol=5e-3, rtol=0
    )


def test_save_and_load(store, tmp_path):
    file = tmp_path / "new" / "text.safetensors"
    store.save(file)
    loaded = TextStore.load(file)
    assert (loaded.ids, loaded.vocabulary, loaded.fingerprint) == (store.ids, store.vocabulary, store.fingerprint)
    for granularity in GRANULARITIES:
        assert torch.equal(loaded.batch(IDS)[granularity].embeddings, store.batch(IDS)[granularity].embeddings)
    assert [path.name for path in file.parent.iterdir()] == ["text.safetensors"]


def test_a_failed_save_leaves_the_old_file_unchanged(store, tmp_path):
    file = tmp_path / "text.safetensors"
    store.save(file)
    before = file.read_bytes()
    with pytest.raises(RuntimeError):  # a table that cannot be written
        replace(store, table=store.table.to("meta")).save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["text.safetensors"] and file.read_bytes() == before


@pytest.mark.parametrize("kind", ["store", "shards", "cache"])
def test_stores_and_cache_are_text_sources(kind, store, encoder, tmp_path):
    store.save(shard_path(tmp_path, 0))
    Manifest(store.fingerprint, 1, len(store)).write(tmp_path)
    source: TextSource = {
        "store": lambda: store,
        "shards": lambda: ShardedStore.open(tmp_path),
        "cache": lambda: TextCache(encoder, means=store.means),
    }[kind]()
    assert isinstance(source, TextSource) and source.dim == 32
    texts = [IDS[0], IDS[4]] if kind != "cache" else [TEXTS[0], TEXTS[4]]
    for units in (source.batch(texts, "cpu"), source.batch(texts, device="cpu")):
        torch.testing.assert_close(units["word"].embeddings, store.batch([0, 4])["word"].embeddings, atol=5e-3, rtol=0)


def test_wrong_requests_say_what_is_needed(store, encoder, bert_folder):
    with pytest.raises(KeyError, match=r"no text for 'x\.png'"):
        store.batch(["a.png", "x.png"])
    with pytest.raises(IndexError, match="store of 5 texts"):
        store.batch([5])
    with pytest.raises(ValueError, match="given twice"):
        TextStore.build(["a", "b"], encoder, ["x", "x"])
    with pytest.raises(ValueError, match="2 texts but 1 ids"):
        TextStore.build(["a", "b"], encoder, ["x"])
    with pytest.raises(KeyError, match="no granularity 'token'"):
        store.units(0, "token")
    other = type(encoder).from_pretrained(bert_folder, pooling="cls")
    with pytest.raises(ValueError, match="different encoders"):
        store.with_mean_of(TextStore.build(["a dog"], other))


def test_rows_may_be_a_tensor(store):
    assert torch.equal(store.batch(torch.tensor([0, 2]))["word"].mask, store.batch(["a.png", "c.png"])["word"].mask)
