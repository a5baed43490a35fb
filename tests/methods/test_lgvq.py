"""LG-VQ's three losses against plain loops, its masks, and texts and grids of any size."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.small_methods import corpus, made, step_of

from tavq_plugin.methods.lgvq import draw_masked, global_contrast, positions, relation, training_words


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = torch.arange(5)[None] < torch.tensor([5, 2, 0])[:, None]


def test_the_global_contrast_equals_a_loop_over_images():
    images, texts = F.normalize(drawn(4, 6), dim=1), F.normalize(drawn(4, 6, seed=1), dim=1)
    with_text = [0, 2, 3]
    expected = 0.0
    for i in with_text:
        expected -= math.log(math.exp(images[i] @ texts[i]) / sum(math.exp(images[i] @ texts[j]) for j in with_text))
    present = torch.tensor([True, False, True, True])
    assert global_contrast(images, texts, present).item() == pytest.approx(expected / 3)
    torch.autograd.gradcheck(lambda x: global_contrast(x, texts, present), images.requires_grad_())


def test_the_relation_equals_a_loop_over_pairs_of_words():
    codes, places, tokens = (
        drawn(3, 7, 4),
        F.normalize(drawn(3, 7, 6, seed=1), dim=2),
        F.normalize(drawn(3, 5, 6, seed=2), dim=2),
    )
    expected = 0.0
    for i, m in ((0, 5), (1, 2)):
        chosen = [codes[i][max(range(7), key=lambda n: places[i][n] @ tokens[i][t])] for t in range(m)]
        for s in range(m):
            for t in range(m):
                apart = F.cosine_similarity(chosen[s], chosen[t], 0) - tokens[i][s] @ tokens[i][t]
                expected += apart.item() ** 2 / m**2
    assert relation(codes, places, tokens, MASK).item() == pytest.approx(expected / 2)
    torch.autograd.gradcheck(lambda x: relation(x, places, tokens, MASK), codes.requires_grad_())
    assert relation(codes, places, tokens, torch.zeros_like(MASK)) == 0


def test_masked_shares_follow_the_cut_normal():
    mask = torch.ones(2000, 200, dtype=torch.bool)
    share = draw_masked(mask, torch.Generator().manual_seed(0)).float().mean(1)
    assert share.min() >= 0.1 and share.max() <= 0.3
    # mean of a normal cut to [a, b]: μ + σ (φ(a) − φ(b)) / (Φ(b) − Φ(a)) at a = −4, b = −2 of σ = .1, μ = .5
    phi = [math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) for z in (-4, -2)]
    cut = [0.5 * (1 + math.erf(z / math.sqrt(2))) for z in (-4, -2)]
    assert share.mean().item() == pytest.approx(0.5 + 0.1 * (phi[0] - phi[1]) / (cut[1] - cut[0]), abs=2e-3)


def test_masks_hide_only_words_and_ignore_padding():
    hidden = draw_masked(MASK, torch.Generator().manual_seed(3))
    assert hidden.sum(1).tolist() == [1, 1, 0] and not (hidden & ~MASK).any()
    wide = draw_masked(F.pad(MASK, (0, 4)), torch.Generator().manual_seed(3))
    assert torch.equal(wide[:, :5], hidden) and not wide[:, 5:].any()


def test_the_masked_loss_equals_a_loop_over_images():
    """A loop over single, unpadded texts with a written-out smoothed cross-entropy gives the batch's loss."""
    tokenizer, one = made("lgvq")
    one = one.double()
    words, step = training_words(corpus()).double(), step_of(tokenizer)
    units = step.texts["word"]
    seen = one.visual_tokens(step.codes.final.quantized.detach().double())
    tokens = F.normalize(units.embeddings.double(), dim=2) * units.mask[..., None]
    hidden = draw_masked(units.mask, torch.Generator().manual_seed(0))
    losses = []
    for i in range(len(tokens)):
        text, hide = tokens[i][units.mask[i]], hidden[i][units.mask[i]]
        shown = torch.where(hide[:, None], one.mask_token, text)
        read = one.read(shown) + positions(1, len(text), 16)
        named = one.to_word(one.fill(read[None], seen[i : i + 1]))[0]
        for t in hide.nonzero()[:, 0]:
            logs = (named[t] @ words.T).log_softmax(0)
            target = (words - text[t]).norm(dim=1).argmin()
            losses.append(-(0.9 * logs[target] + 0.1 * logs.mean()))
    torch.testing.assert_close(one.masked_words(seen, tokens, units.mask), sum(losses) / len(losses))


def test_the_vocabulary_holds_the_words_of_the_training_texts():
    texts = [corpus().store.units(row, "word") for row in range(8)]
    trained = {word for row in texts[:6] for word in row}
    assert len(training_words(corpus())) == len(trained) < len({word for row in texts for word in row})
    none = replace(corpus(), store=corpus().store.subset([3, 3 + 1]).subset(["3"]), n_train=1)
    with pytest.raises(ValueError, match="no training text of small holds any"):
        training_words(none)


@pytest.mark.parametrize("straight", [True, False])
def test_gradient_passes_straight_through_to_the_encoder(straight):
    tokenizer, one = made("lgvq", straight_through=straight)
    sum(one(step_of(tokenizer)).values()).backward()
    assert tokenizer.host.encoder.conv_in.weight.grad.norm() > 0
    assert (tokenizer.adapter.codebook().grad is None) == straight
    assert all(p.grad.norm() > 0 for p in one.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in tokenizer.hierarchy.parameters())  # only the final level is used


def test_any_grid_works():
    _, one = made("lgvq")
    for grid in ((3, 5), (16, 2), (1, 1)):
        assert one.visual_tokens(torch.zeros(2, 8, *grid)).shape == (2, 1 + grid[0] * grid[1], 16)
    assert len(positions(3, 5, 16).unique(dim=0)) == 15


@pytest.mark.parametrize("bad", [{"masked_weight": -1.0}, {"width": 18}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        made("lgvq", **bad)
