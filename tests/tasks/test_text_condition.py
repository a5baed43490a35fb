"""Texts as prefixes: every unit once, padding masked, and prompts that say nothing refused."""

import pytest
import torch

from tavq_plugin.tasks.text_condition import READ, TextCondition, caption_store, prompt_store, without_units
from tavq_plugin.text.store import TextStore

TEXTS = ["The red car sleeps in the house. Two men run.", "", "A blue dog runs on the boat."]


def test_a_prefix_holds_every_unit_of_its_text(encoder):
    store = TextStore.build(TEXTS, encoder)
    prompt = TextCondition(store.dim, 16)(store.batch([0, 1, 2]))
    for row in range(3):
        units = sum(len(store.units(row, granularity)) for granularity in READ)
        assert int(prompt.mask[row].sum()) == units
    assert not prompt.mask[1].any() and prompt.prefix.shape == (*prompt.mask.shape, 16)
    assert without_units(store, torch.arange(3)).tolist() == [False, True, False]


def test_prompts_are_centred_as_the_training_texts(encoder):
    store = TextStore.build(TEXTS, encoder)
    prompts = prompt_store([TEXTS[2]], encoder, store)
    for granularity, units in prompts.batch([0]).items():
        own = store.batch([2])[granularity]
        torch.testing.assert_close(units.embeddings, own.embeddings)


@pytest.mark.parametrize("nothing", ["", "  "])
def test_a_prompt_without_units_is_refused(encoder, nothing):
    store = TextStore.build(TEXTS, encoder)
    with pytest.raises(ValueError, match="has no unit"):
        prompt_store(["A red car.", nothing], encoder, store)


def test_captions_are_encoded_once_and_centred_on_the_training_ones(encoder, tmp_path):
    first = caption_store(TEXTS, encoder, tmp_path, n_train=1)
    encoded = encoder.stats.strings
    again = caption_store(TEXTS, encoder, tmp_path, n_train=1)
    assert torch.equal(first.table, again.table) and first.vocabulary == again.vocabulary
    assert encoder.stats.strings == encoded
    only = TextStore.build(TEXTS[:1], encoder)
    torch.testing.assert_close(first.means["word"], only.means["word"], atol=2e-3, rtol=0)
    other = caption_store(TEXTS[:2], encoder, tmp_path, n_train=1)
    assert len(other) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "texts.json").write_text("mine")
    with pytest.raises(FileExistsError, match="texts.json"):
        caption_store(TEXTS, encoder, tmp_path / "other", n_train=1)
