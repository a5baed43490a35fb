"""LG-VQ's losses and networks against the release's equations and plain loops; masks, texts and grids of any size."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.small_methods import corpus, made, step_of

from tavq_plugin.methods import method_class
from tavq_plugin.methods.lgvq import draw_masked, global_contrast, in_context, relation, training_words


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
        best = [max(range(7), key=lambda n: places[i][n] @ tokens[i][t]) for t in range(m)]
        chosen = [codes[i][n] * (places[i][n] @ tokens[i][t]).sign() for t, n in enumerate(best)]
        for s in range(m):
            for t in range(m):
                apart = F.cosine_similarity(chosen[s], chosen[t], 0) - tokens[i][s] @ tokens[i][t]
                expected += apart.item() ** 2 / 30**2
    assert relation(codes, places, tokens, MASK).item() == pytest.approx(expected / 2)
    torch.autograd.gradcheck(lambda x: relation(x, places, tokens, MASK), codes.requires_grad_())
    assert relation(codes, places, tokens, torch.zeros_like(MASK)) == 0


def test_a_long_texts_relations_are_divided_by_its_own_pairs():
    codes, places, tokens = drawn(1, 7, 4), F.normalize(drawn(1, 7, 6), dim=2), F.normalize(drawn(1, 40, 6), dim=2)
    whole = torch.ones(1, 40, dtype=torch.bool)
    chosen = F.normalize(codes[0][(places[0] @ tokens[0].T).argmax(0)], dim=1)
    signs = (places[0] @ tokens[0].T).amax(0).sign()[:, None]
    apart = (chosen * signs) @ (chosen * signs).T - tokens[0] @ tokens[0].T
    torch.testing.assert_close(relation(codes, places, tokens, whole), apart.square().mean())


def test_each_word_is_masked_with_the_batchs_probability():
    mask = torch.ones(20, 500, dtype=torch.bool)
    draw = torch.Generator().manual_seed(0)
    share = torch.stack([draw_masked(mask, draw).float().mean() for _ in range(2000)])
    assert share.min() >= 0.08 and share.max() <= 0.32  # [.1, .3], and the spread of 10,000 words
    # mean of a normal cut to [a, b]: μ + σ (φ(a) − φ(b)) / (Φ(b) − Φ(a)) at a = −4, b = −2 of σ = .1, μ = .5
    phi = [math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) for z in (-4, -2)]
    cut = [0.5 * (1 + math.erf(z / math.sqrt(2))) for z in (-4, -2)]
    assert share.mean().item() == pytest.approx(0.5 + 0.1 * (phi[0] - phi[1]) / (cut[1] - cut[0]), abs=3e-3)


def test_masks_hide_only_words_and_ignore_padding():
    mask = torch.arange(60)[None] < torch.tensor([60, 30, 0])[:, None]
    hidden = draw_masked(mask, torch.Generator().manual_seed(3))
    assert hidden[0].any() and hidden[1].any() and not (hidden & ~mask).any()
    wide = draw_masked(F.pad(mask, (0, 4)), torch.Generator().manual_seed(3))
    assert torch.equal(wide[:, :60], hidden) and not wide[:, 60:].any()


# The release's equations (LG_vqgan.py, clip/model.py, transformer/decoder.py at 42c3ff1), written anew for one image.


def released_attention(q, k, w, b, out):
    """One head of scaled dot products; m d, n d, 3d d, 3d, linear layer -> m d."""
    (wq, wk, wv), (bq, bk, bv) = w.chunk(3), b.chunk(3)
    scores = (q @ wq.T + bq) @ (k @ wk.T + bk).T / math.sqrt(q.shape[1])
    return scores.softmax(1) @ (k @ wv.T + bv) @ out.weight.T + out.bias


def layer_norm(x, norm, eps):
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


def released_visual(look, codes):
    """Visual tokens of one image's codes; (h w) c -> (1 + h w) d."""
    x = layer_norm(torch.cat([look.cls[None], codes]) + look.positions, look.before, 1e-5)
    for block in look.blocks:
        attention, normed = block.self_attn, layer_norm(x, block.norm1, 1e-5)
        x = x + released_attention(normed, normed, attention.in_proj_weight, attention.in_proj_bias, attention.out_proj)
        inner = layer_norm(x, block.norm2, 1e-5) @ block.linear1.weight.T + block.linear1.bias
        inner = inner / (1 + (-1.702 * inner).exp())
        x = x + inner @ block.linear2.weight.T + block.linear2.bias
    return layer_norm(x, look.after, 1e-5) @ look.project


def released_scores(read, tokens, hidden, visual, vocabulary):
    """Scores of the vocabulary for the words of one text; m d, m bool, n d, u d -> m u."""
    x = torch.where(hidden[:, None], read.mask_vectors[: len(tokens)], tokens)
    for layer in read.layers:
        own, cross = layer.self_attn, layer.multihead_attn
        read_own = released_attention(x, x, own.in_proj_weight, own.in_proj_bias, own.out_proj)
        x = layer_norm(x + read_own, layer.norm1, 1e-12)
        seen = released_attention(x, visual, cross.in_proj_weight, cross.in_proj_bias, cross.out_proj)
        x = layer_norm(x + seen, layer.norm2, 1e-12)
        inner = (x @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
        x = layer_norm(x + inner @ layer.linear2.weight.T + layer.linear2.bias, layer.norm3, 1e-12)
    linear, _, norm = read.head
    x = x @ linear.weight.T + linear.bias
    x = layer_norm(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), norm, 1e-5)
    return x @ vocabulary.T + read.bias


def released_relations(relate, codes):
    linear, _, norm = relate
    x = codes @ linear.weight.T + linear.bias
    return layer_norm(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), norm, 1e-5)


@pytest.mark.parametrize("contextual", [False, True])
def test_the_losses_equal_the_releases_equations(contextual):
    """The same tensors in both; the release's constants are 1e-6, .1, 5e-6 and 30² pairs, its weights as below."""
    tokenizer, one = made("lgvq", dropout=0.0, contextual=contextual)
    one, step = one.double(), step_of(tokenizer)
    final = step.codes.final
    latent, quantized = (x.detach().double().requires_grad_() for x in (final.latent, final.quantized))
    levels = (*step.codes.levels[:2], replace(final, latent=latent, quantized=quantized))
    found = one(replace(step, codes=replace(step.codes, levels=levels)))
    words, sentences = (replace(u, embeddings=u.embeddings.double()) for u in map(step.texts.get, ("word", "sentence")))
    hidden = draw_masked(words.mask, torch.Generator().manual_seed(0))
    vocabulary, pooled, cls, named, relations = training_words(corpus()).double(), [], [], [], 0.0
    for i in range(3):
        own = F.normalize(words.embeddings[i][words.mask[i]], dim=1)
        pooled.append(F.normalize(F.normalize(sentences.embeddings[i][sentences.mask[i]], dim=1).mean(0), dim=0))
        tokens = F.normalize(own + pooled[i], dim=1) if contextual else own
        codes = quantized[i].flatten(1).T
        visual = released_visual(one.look, codes)
        cls.append(visual[0] / visual[0].norm())
        scores = released_scores(one.read, tokens * own.shape[1] ** 0.5, hidden[i][words.mask[i]], visual, vocabulary)
        logs = scores.log_softmax(1)
        for place in hidden[i][words.mask[i]].nonzero()[:, 0]:
            target = (vocabulary - own[place]).norm(dim=1).argmin()
            named.append(0.9 * -logs[place, target] + 0.1 * -logs[place].mean())
        similar = tokens @ F.normalize(visual[1:], dim=1).T
        value, nearest = similar.max(1)
        chosen = released_relations(one.relate, codes)[nearest] * value[:, None]
        chosen = chosen / chosen.norm(dim=1, keepdim=True)
        relations = relations + ((chosen @ chosen.T - tokens @ tokens.T) ** 2).sum() / 30**2 / 3
    cls, pooled = torch.stack(cls), torch.stack(pooled)
    contrast = -((cls * pooled).sum(1).exp() / ((cls @ pooled.T).exp().sum(1) + 1e-6)).log().mean()
    expected = {
        "global": 1e-3 * contrast,
        "masked": 1e-2 * sum(named) / (len(named) + 5e-6),
        "relation": 1e-4 * relations,
    }
    assert len(named) > 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0)
        ours = torch.autograd.grad(found[name], latent, retain_graph=True)[0]
        theirs = torch.autograd.grad(value, quantized, retain_graph=True)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_words_outside_the_training_texts_are_not_asked_for():
    tokenizer, one = made("lgvq", dropout=0.0)
    step = step_of(tokenizer)
    visual, words = one.look(step.codes.final.quantized), step.texts["word"]
    strange = F.normalize(drawn(*words.embeddings.shape).float(), dim=2)
    assert one.masked_words(visual, strange, words.mask, seen=strange) == 0


def test_context_brings_the_masked_words_into_the_others():
    words, text = F.normalize(drawn(1, 3, 6), dim=2), F.normalize(drawn(1, 6, seed=1), dim=1)
    seen = in_context(words, text)
    assert ((seen * text[:, None]).sum(2) > (words * text[:, None]).sum(2)).all()


def test_dropout_is_drawn_from_the_methods_own_stream():
    values = []
    for dropout in (0.0, 0.1, 0.1):
        tokenizer, one = made("lgvq", dropout=dropout)
        step, stream = step_of(tokenizer), torch.get_rng_state()
        values.append(one(step)["masked"].item())
        assert torch.equal(stream, torch.get_rng_state())
    assert values[0] != values[1] == values[2]


def test_the_scales_at_the_start_are_the_releases():
    _, one = made("lgvq")
    tables = (one.look.positions, one.look.project, one.read.mask_vectors, one.relate[0].weight)
    assert all(table.std().item() == pytest.approx(0.01, rel=0.15) for table in tables)
    assert one.read.mask_vectors.shape[0] == 30 and one.read.bias.shape == (len(training_words(corpus())),)
    assert one.look.grid == (8, 8)  # of the corpus' images


def test_a_run_of_another_network_is_refused_by_name(tmp_path):
    assert method_class("lgvq").resolved_options({})["dropout"] == 0.1
    with pytest.raises(ValueError, match="run of lgvq by an earlier release.*give another --out"):
        method_class("lgvq").resolved_options({}, {"width": 128})


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
        assert one.look(torch.zeros(2, 8, *grid)).shape == (2, 1 + grid[0] * grid[1], corpus().store.dim)


@pytest.mark.parametrize("bad", [{"masked_weight": -1.0}, {"heads": 3}, {"layers": 0}, {"dropout": 1.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        made("lgvq", **bad)
