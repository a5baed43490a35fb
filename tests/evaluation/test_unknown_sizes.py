"""Hosts of which something is not known: several code books, no codebook, no decoder; and codes in a sequence."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_hosts import tiny
from helpers.toy_corpus import corpus
from torch.nn import functional as F

from tavq_plugin.evaluation.encoded_images import encode_images, share_beyond_indices
from tavq_plugin.evaluation.evaluate import evaluate_run, score_codes
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.probes.ridge import places_of
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import wrap

SETTINGS = EvaluationSettings(words=5, transport_images=6, judges=(), attentive=False, permutations=2)


@pytest.fixture(scope="module")
def targets():
    return TextTargets(corpus(n=36, n_train=24, side=32), SETTINGS)


def results_of(host, targets, **settings):
    torch.manual_seed(0)
    tokenizer = wrap(tiny(host), log_summary=False, **settings)
    return evaluate_run(tokenizer, targets, Judges(None, targets.corpus.images[24:], names=()))


OWN = {"codebook": "own", "codebook_size": 8, "grad_to": "encoder"}


def test_bits_of_several_code_books_are_not_those_of_the_first(targets):
    pytest.importorskip("vector_quantize_pytorch")
    results = results_of("lucidrains-residual", targets, **OWN)
    for name in ("tokens_3", "bits_3", "tokens", "bits"):
        assert name not in results.values and "further code books" in results.missing[name], name
    assert {"usage", "grid_r10_3", "psnr", "bits_1"} <= results.values.keys()


def test_bits_of_one_code_book_are_known(targets):
    pytest.importorskip("vector_quantize_pytorch")
    for host in ("lucidrains-vq", "lucidrains-fsq"):
        results = results_of(host, targets, **OWN)
        assert {"tokens_3", "bits_3", "bits", "usage"} <= results.values.keys(), host


def test_the_share_beyond_the_indices_is_what_further_code_books_add():
    draw = torch.Generator().manual_seed(0)
    table, indices = torch.randn(8, 4, generator=draw), torch.randint(8, (5, 6, 6), generator=draw)
    vectors = F.embedding(indices, table).permute(0, 3, 1, 2)
    assert share_beyond_indices(vectors, indices) < 1e-12
    assert share_beyond_indices(vectors + 1e-5 * torch.randn(vectors.shape, generator=draw), indices) < 1e-6
    added = share_beyond_indices(vectors + torch.randn(vectors.shape, generator=draw), indices)
    assert 0.2 < added < 0.7


def test_a_host_without_a_decoder_is_evaluated_by_its_codes(targets):
    pytest.importorskip("transformers")
    results = results_of("transformers-chameleon", targets)
    assert results.missing["psnr"] == results.missing["lpips"] == "these features give no image"
    assert {"usage", "bits_3", "purity_3"} <= results.values.keys() and "shown" not in results.artifacts
    assert "grid_r10_3" in results.values.keys() | results.missing.keys()  # noise may teach a probe nothing


def test_codes_in_a_sequence_keep_as_many_places_as_codes_on_a_grid(targets):
    sequence = torch.arange(128.0).view(1, 1, 1, 128)
    assert places_of(sequence).shape == (1, 1, 1, 64) and places_of(sequence.mT).shape == (1, 1, 64, 1)
    assert torch.equal(places_of(sequence[..., :32]), sequence[..., :32])


def test_codes_in_a_sequence_have_no_place_in_the_image(targets):
    boxes = [[{"phrase": "red circle", "box": [0.0, 0.0, 1.0, 1.0]}]] * 36
    boxed = TextTargets(replace(targets.corpus, boxes=boxes), SETTINGS)
    tokenizer = wrap(tiny("taming-vq"), log_summary=False).eval()

    def encoded(images, **settings):
        grid = encode_images(tokenizer, images, batch_size=12, **settings)
        stored = {name: getattr(grid, name)[-1:] for name in ("pooled", "indices", "quantized")}
        return grid._replace(**stored, places=[grid.places[-1].flatten(2)[:, :, None]])

    train, images = boxed.corpus.images[:24], boxed.corpus.images[24:]
    sides = encoded(train), encoded(images, keep=boxed.transport_images, decode=True)
    results = score_codes(*sides, [32], boxed, Judges(None, boxed.corpus.images[24:], names=()))
    assert "have no place in the image" in results.missing["word_in_box_map_3"] and "purity_3" in results.values
