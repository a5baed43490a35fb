"""The cache of texts: same units as a store, each encoded once, bounded memory."""

import pytest
import torch

from tavq_plugin.text import TextCache, TextStore
from tavq_plugin.types import GRANULARITIES

TEXTS = ["A red car. The dog sleeps.", "", None, "Two men in a blue boat."]


def test_a_cache_equals_a_store_of_the_same_texts(encoder):
    store = TextStore.build(TEXTS, encoder)
    batch = TextCache(encoder, means=store.means).batch(TEXTS)
    for granularity, units in store.batch(range(4)).items():
        torch.testing.assert_close(batch[granularity].embeddings, units.embeddings)
        assert torch.equal(batch[granularity].mask, units.mask)


def test_running_mean_is_that_of_the_distinct_units_seen(encoder):
    cache = TextCache(encoder)
    cache.batch(["A red car.", "A red car."])
    cache.batch(["A red boat."])
    mean = encoder.encode(["red", "car", "boat"]).mean(0)
    torch.testing.assert_close(cache.means["word"], mean, atol=1e-3, rtol=0)


def test_held_out_texts_do_not_change_the_means(encoder):
    cache = TextCache(encoder)
    cache.batch(["A red car. A dog."])
    before = cache.means
    units = cache.batch(["Two men in a boat."], learn=False)["word"]
    assert units.mask.all()
    for granularity in GRANULARITIES:
        assert torch.equal(cache.means[granularity], before[granularity])
    cache.batch(["Two men in a boat."])
    assert not torch.equal(cache.means["word"], before["word"])


def test_a_text_seen_before_is_not_encoded_again(encoder):
    cache = TextCache(encoder)
    cache.batch(TEXTS)
    strings = encoder.stats.strings
    cache.batch([TEXTS[3], "The dog sleeps."])
    assert encoder.stats.strings == strings


def test_the_names_of_units_stand_in_the_order_of_the_batch(encoder):
    cache, store = TextCache(encoder), TextStore.build(TEXTS, encoder)
    for granularity in GRANULARITIES:
        assert cache.units(TEXTS, granularity) == [store.units(row, granularity) for row in range(4)]
    assert not any(mean.any() for mean in cache.means.values())


def test_missing_text_is_a_masked_row_and_counted(encoder):
    cache = TextCache(encoder)
    units = cache.batch([None, "  "])["phrase"]
    assert units.embeddings.shape == (2, 1, 32)
    assert not units.mask.any()
    assert cache.without_text == 2


def test_memory_is_bounded_and_means_survive(encoder):
    cache = TextCache(encoder, limit=3)
    cache.batch(["A red car. A dog."])
    mean = cache.means["word"]
    assert len(cache) > 3
    cache.batch([None])
    assert len(cache) == 0
    torch.testing.assert_close(cache.means["word"], mean)
    assert cache.batch(["A cat."])["word"].mask.all()


def test_the_table_keeps_its_rows_while_it_grows(encoder):
    cache = TextCache(encoder, means={name: torch.zeros(32) for name in GRANULARITIES})
    before = cache.batch(["A red car."])["sentence"].embeddings
    cache.add([f"The dog runs {n} times." for n in range(600)])  # two new sentences and phrases each
    assert len(cache) > 1024
    assert torch.equal(cache.batch(["A red car."])["sentence"].embeddings, before)


def test_an_interrupted_encoding_leaves_a_cache_that_works(encoder):
    def stop(*_):
        raise KeyboardInterrupt

    cache = TextCache(encoder)
    cache.batch(["A red car."])
    hook = encoder.model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        cache.batch(["A blue boat."])
    hook.remove()
    units = cache.batch(["A blue boat."], learn=False)["word"]
    assert units.mask.sum() == 2
    torch.testing.assert_close(units.embeddings.norm(dim=-1), torch.ones(1, 2))


def test_a_text_of_another_type_leaves_a_cache_that_works(encoder):
    cache = TextCache(encoder)
    with pytest.raises(TypeError, match="must be a string"):
        cache.batch(["A blue boat.", 5])
    units = cache.batch(["A blue boat."], learn=False)["word"]
    torch.testing.assert_close(units.embeddings.norm(dim=-1), torch.ones(1, 2))


def test_wrong_arguments_say_what_is_needed(encoder):
    with pytest.raises(TypeError, match=r"give \[text\]"):
        TextCache(encoder).batch("a dog")
    with pytest.raises(ValueError, match="at least 1"):
        TextCache(encoder, limit=0)
