"""The masked model: what it may give, what it must leave alone, and what it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.masked_model import MaskedModel, Prompt, masked_loss, sample
from tavq_plugin.tasks.sampling import SamplingSettings, guided
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout

TINY = ModelSettings(width=32, layers=2, heads=2)
LEVELS = TokenLayout((LevelGrid(2, 2, 5), LevelGrid(4, 4, 3)))
ORDERS = ("halton", "confidence")


def codes_of(layout=LEVELS, n=6):
    draw = torch.Generator().manual_seed(0)
    indices = [torch.randint(g.codes, (n, g.height, g.width), generator=draw) for g in layout.grids]
    return CodeSequences(layout.flatten(indices), layout, torch.randn(layout.vocabulary, 4, generator=draw), "made")


def model_of(codes, settings=TINY, **more):
    with drawn_from(0):
        return MaskedModel(codes, settings, **more).eval()


def prompt_of(b, m=3, places=None):
    draw = torch.Generator().manual_seed(1)
    at_places = None if places is None else torch.randn(b, places, 32, generator=draw)
    return Prompt(torch.randn(b, m, 32, generator=draw), torch.ones(b, m, dtype=torch.bool), at_places)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_only_allowed_tokens_are_drawn_and_known_ones_are_kept(order, guidance):
    codes = codes_of()
    model = model_of(codes)
    nn.init.normal_(model.head.weight, std=3)  # predictions that are wild, also beyond a place's own level
    holes = torch.rand(codes.tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    holes[0], holes[1] = True, False  # all to fill, and nothing to fill
    given = codes.tokens.masked_fill(holes, LEVELS.mask)
    settings = SamplingSettings(steps=5, order=order, guidance=guidance, temperature=3.0)
    made = sample(model, given, settings, prompt=prompt_of(6, places=20))
    assert torch.equal(made[~holes], codes.tokens[~holes])
    assert LEVELS.allowed()[torch.arange(20).expand_as(made), made].all()
    assert not torch.equal(made, codes.tokens)


@pytest.mark.parametrize("order", ORDERS)
def test_a_seed_gives_the_same_tokens_and_leaves_the_random_stream(order):
    codes = codes_of()
    model, given = model_of(codes), torch.full((6, 20), LEVELS.mask)
    state = torch.get_rng_state()
    first, again, other = (sample(model, given, SamplingSettings(order=order, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_guidance_1_with_a_prompt_is_no_guidance_and_0_ignores_the_prompt():
    codes = codes_of()
    model, given = model_of(codes), torch.full((6, 20), LEVELS.mask)
    without = sample(model, given, SamplingSettings(seed=3))
    prompt = prompt_of(6, places=20)
    nothing = prompt.kept(torch.zeros(6, dtype=torch.bool))
    assert torch.equal(sample(model, given, SamplingSettings(seed=3), prompt=nothing), without)
    assert torch.equal(sample(model, given, SamplingSettings(seed=3, guidance=0.0), prompt=prompt), without)
    assert not torch.equal(sample(model, given, SamplingSettings(seed=3), prompt=prompt), without)


def test_guided_sampling_of_one_step_takes_the_greatest_guided_logit():
    codes = codes_of()
    model, given, prompt = model_of(codes), torch.full((6, 20), LEVELS.mask), prompt_of(6)
    made = sample(model, given, SamplingSettings(steps=1, temperature=0.0, guidance=2.5), prompt=prompt)
    places = torch.arange(20)
    with torch.no_grad():
        pair = [model.head(model(given, which)) for which in (prompt, None)]
    for row in range(6):
        logits = guided(pair[0][row], pair[1][row], 2.5).masked_fill(~LEVELS.allowed()[places], -math.inf)
        assert torch.equal(made[row], logits.argmax(1))


def test_padding_of_a_prefix_changes_nothing():
    codes = codes_of()
    model, prompt = model_of(codes), prompt_of(6)
    longer = Prompt(F.pad(prompt.prefix, (0, 0, 0, 4), value=7.0), F.pad(prompt.mask, (0, 4)))
    with torch.no_grad():
        torch.testing.assert_close(model(codes.tokens, prompt), model(codes.tokens, longer))


def test_the_loss_is_the_cross_entropy_of_the_masked_places():
    codes = codes_of()
    model = model_of(codes).double()
    draw = torch.Generator().manual_seed(5)
    loss = masked_loss(model, codes.tokens, draw, label_smoothing=0.2)
    draw = torch.Generator().manual_seed(5)
    counts = [
        max(1, math.ceil(math.cos(u * math.pi / 2) * 20)) for u in torch.rand(6, 1, generator=draw)[:, 0].tolist()
    ]
    hidden = torch.rand(6, 20, generator=draw).argsort(1).argsort(1) < torch.tensor(counts)[:, None]
    known = model(codes.tokens.masked_fill(hidden, LEVELS.mask))
    losses = []
    for row, place in hidden.nonzero().tolist():
        level = slice(0, 5) if place < 4 else slice(5, 8)
        logits = model.head(known[row, place]).float()[level]
        losses.append(F.cross_entropy(logits, codes.tokens[row, place] - level.start, label_smoothing=0.2))
    torch.testing.assert_close(loss, torch.stack(losses).mean())


@pytest.mark.parametrize("kind", ["codebook", "indices"])
def test_a_tiny_model_learns_which_tokens_go_together(kind):
    """Every image has one code everywhere; samples of the trained model must do so too, and use all codes."""
    layout = TokenLayout((LevelGrid(3, 3, 4),))
    tokens = torch.arange(4).repeat(16)[:, None].expand(-1, 9)
    codes = CodeSequences(tokens, layout, torch.eye(4), "made")
    with drawn_from(0):
        model = MaskedModel(codes, ModelSettings(32, 2, 2, embedding=kind))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(80):
        loss = masked_loss(model, tokens, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for order in ORDERS:
        settings = SamplingSettings(steps=9, order=order, order_noise=30, temperature=0.7)
        made = sample(model, torch.full((64, 9), layout.mask), settings)
        assert (made == made[:, :1]).all(1).float().mean() > 0.9  # by chance: 4 ** -8
        assert len(made[:, 0].unique()) == 4
    one_known = torch.full((4, 9), layout.mask)
    one_known[:, 4] = torch.arange(4)
    assert torch.equal(sample(model, one_known, SamplingSettings(temperature=0.0)), tokens[:4])


@pytest.mark.parametrize(
    ("tokens", "more", "message"),
    [
        (torch.full((2, 20), 9), {}, "no code of its place"),
        (torch.full((2, 20), -1), {}, "no code of its place"),
        (torch.full((2, 20), 7), {}, "no code of its place"),
        (torch.full((2, 19), LEVELS.mask), {}, "20 places"),
        (torch.full((0, 20), LEVELS.mask), {}, "one or more images"),
        (torch.full((2, 20), LEVELS.mask), {"settings": SamplingSettings(guidance=2.0)}, "needs a prompt"),
        (torch.full((2, 20), LEVELS.mask), {"prompt": prompt_of(3)}, "prompts for 3 images"),
    ],
)
def test_strange_tokens_and_prompts_are_refused(tokens, more, message):
    with pytest.raises(ValueError, match=message):
        sample(model_of(codes_of()), tokens, **more)
