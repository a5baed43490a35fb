"""Protocol cards: every metric that a table shows has one, of a level or of the whole run."""

import pytest

from tavq_plugin.evaluation.metrics.cards import APPENDIX, BY_LEVEL, CARDS, PRIMARY, card_of

SHOWN = (*PRIMARY, *APPENDIX, *BY_LEVEL, *(f"{name}_{level}" for name in BY_LEVEL for level in (1, 2, 3)))


@pytest.mark.parametrize("metric", SHOWN)
def test_every_metric_of_a_table_has_a_short_title(metric):
    card = card_of(metric)
    assert card.what and len(card.head) <= 34 and ", level" not in card.head


def test_a_card_knows_its_level_and_whether_it_is_of_text():
    card = card_of("grid_r10_3")
    assert (card.level, card.text, card.head) == (3, True, "grid R@10")
    assert card_of("image_text_r1").level is None and card_of("usage_2").level == 2
    assert not any(card_of(metric).text for metric in ("psnr", "usage", "bits_3", "stability_codes_null"))
    assert all(card_of(metric).text for metric in PRIMARY if "_r1" in metric or "map" in metric)


def test_what_the_name_without_a_level_means_is_said_on_its_card_only():
    assert card_of("tokens").what.endswith("sum over the levels")
    assert "over the levels" not in card_of("tokens_3").what
    assert card_of("grid_r10").what.endswith("mean over the levels")


def test_a_protocol_records_fields_of_json():
    import json

    assert json.loads(json.dumps(card_of("purity_1").to_dict()))["level"] == 1


@pytest.mark.parametrize("metric", ["unheard_of", "psnr_2", "grid_r10_4"])
def test_a_metric_without_a_card_is_refused(metric):
    with pytest.raises(KeyError, match="no protocol card"):
        card_of(metric)


def test_no_two_cards_share_a_title():
    titles = [card.title for card in CARDS.values()]
    assert len(set(titles)) == len(titles)
