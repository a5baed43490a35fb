"""Restarts of dead codes."""

from types import SimpleNamespace

import pytest
import torch

import tavq_plugin as tavq
from tavq_plugin.training.codebook_restarts import CodebookRestarts


def level(indices, latent):
    return tavq.Level(latent, latent, torch.tensor(indices).view(1, 2, 2), torch.zeros(()))


def test_unused_codes_move_onto_latents_and_used_ones_stay():
    codebook = torch.nn.Parameter(torch.arange(6.0).view(6, 1).repeat(1, 3) + 100)
    latent = torch.randn(1, 3, 2, 2)
    stream = torch.get_rng_state()
    restarts = CodebookRestarts(6, seed=0, below=0.5)
    restarts.count(level([0, 1, 1, 4], latent))
    restarts.count(level([0, 0, 0, 5], latent))
    assert restarts.restart_dead_codes(codebook, level([0, 0, 0, 0], latent)) == 2
    assert torch.equal(codebook[[0, 1, 4, 5], 0], torch.tensor([100.0, 101.0, 104.0, 105.0]))
    places = latent.flatten(2)[0].T
    assert all((places == row).all(1).any() for row in codebook[[2, 3]])
    assert torch.equal(stream, torch.get_rng_state())
    assert (
        restarts.restart_dead_codes(codebook, level([0, 0, 0, 0], latent)) == 0
    )  # counting restarted, so nothing was used
    restarts.count(level([0, 0, 0, 0], latent))
    moved = restarts.restart_dead_codes(codebook, level([0, 0, 0, 0], latent))
    assert moved == 4  # of five dead codes, because there are only four latents


def test_a_method_with_restarts_of_its_own_does_not_get_the_recipes():
    pytest.importorskip("taming")
    pytest.importorskip("accelerate")
    from helpers.toy_corpus import recipe

    from tavq_plugin.training.build import build_tokenizer
    from tavq_plugin.training.codebook_restarts import HostCodebookRestarts
    from tavq_plugin.training.schedule import Phase

    def made(method, **options):
        asked = recipe(method=method, options=options, start={"settle_share": 0.5, "revive_every": 1})
        tokenizer = build_tokenizer(asked)
        return HostCodebookRestarts.from_recipe(asked, tokenizer, SimpleNamespace(), Phase.whole(asked))

    assert made("vqgan") is not None and made("cvq", restarts=True) is not None
    assert made("cvq") is None
