"""The demo's trainer: what λ reaches, and dead codes brought back."""

import pytest
import torch
from conformance import texts
from tiny_hosts import tiny

import tavq_plugin as tavq
from tavq_plugin.revival import Revival
from tavq_plugin.settings import Training
from tavq_plugin.train import train

IMAGES = torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trained(*, aligned=True, **settings):
    """A tiny host after a few steps, and the alignment's heads before and after."""
    torch.manual_seed(0)
    tokenizer = tavq.wrap(tiny("taming-vq"))
    torch.manual_seed(1)
    align = tavq.TextAlignment(tokenizer, 6)
    before = [p.clone() for p in align.parameters()]
    done = train(
        tokenizer, align if aligned else None, IMAGES, lambda rows: texts(), Training(batch_size=2, **settings)
    )
    moved = [not torch.equal(a, b) for a, b in zip(before, align.parameters(), strict=True)]
    return tokenizer, all(moved), done


def weights(tokenizer):
    return [*tokenizer.host.state_dict().values(), *tokenizer.hierarchy.state_dict().values()]


def apart(a, b):
    """Of what two trainings gave. Equal ones differ by rounding at most, which follows where the memory lay."""
    return sum((x - y).abs().sum() for x, y in zip(weights(a), weights(b), strict=True)).item()


def test_no_weight_leaves_the_tokenizer_alone_while_the_heads_learn():
    (bare, _, _), (weightless, moved, done) = trained(aligned=False, steps=6), trained(steps=6, weight=0.0)
    assert moved and done.history[-1]["alignment"] > 0
    aligned, _, _ = trained(steps=6)
    assert apart(bare, weightless) < 1e-3 * apart(bare, aligned)


def test_training_is_determined_by_its_seed():
    (one, _, _), (two, _, _) = trained(steps=4, revive_every=2), trained(steps=4, revive_every=2)
    other, _, _ = trained(steps=4, revive_every=2, seed=1)
    assert apart(one, two) < 1e-3 * apart(one, other)


def level(indices, latent):
    return tavq.Level(latent, latent, torch.tensor(indices).view(1, 2, 2), torch.zeros(()))


def test_unused_codes_move_onto_latents_and_used_ones_stay():
    codebook = torch.nn.Parameter(torch.arange(6.0).view(6, 1).repeat(1, 3) + 100)
    latent = torch.randn(1, 3, 2, 2)
    stream = torch.get_rng_state()
    revival = Revival(6, seed=0, below=0.5)
    revival.see(level([0, 1, 1, 4], latent))
    revival.see(level([0, 0, 0, 5], latent))
    assert revival.move(codebook, level([0, 0, 0, 0], latent)) == 2
    assert torch.equal(codebook[[0, 1, 4, 5], 0], torch.tensor([100.0, 101.0, 104.0, 105.0]))
    places = latent.flatten(2)[0].T
    assert all((places == row).all(1).any() for row in codebook[[2, 3]])
    assert torch.equal(stream, torch.get_rng_state())
    assert revival.move(codebook, level([0, 0, 0, 0], latent)) == 0  # counted anew: nothing was seen
    revival.see(level([0, 0, 0, 0], latent))
    assert revival.move(codebook, level([0, 0, 0, 0], latent)) == 4  # of five, no more than there are latents


@pytest.mark.parametrize("bad", [{"revive_every": -1}, {"revive_share": -0.1}, {"steps": 0}, {"head_rate": 0.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Training(**bad)
