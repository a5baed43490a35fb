"""The causal model: its cache, its padding, texts side by side, and what it refuses."""

import pytest
import torch
from helpers.task_runs import LAYOUT, PALETTE

from tavq_plugin.tasks.causal_model import (
    NEVER_WRITTEN,
    NOT_TRAINED,
    CausalModel,
    causal_transformer,
    likeliest,
    word_loss,
)
from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import CodeSequences
from tavq_plugin.tasks.vocabulary import END, PADDING, START, padded

WORDS = 20
TOKENS = torch.randint(len(PALETTE), (3, LAYOUT.length), generator=torch.Generator().manual_seed(0))
PROMPTS = [[5, 6, START], [START], [9, 8, 7, 5, START]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    prefix = CodeEmbedding(CodeSequences(TOKENS, LAYOUT, PALETTE, "random"), 32)
    made = CausalModel(prefix, WORDS, ModelSettings(32, 2, 2), longest=LAYOUT.length + 24)
    for weights in made.parameters():  # larger weights, so that different inputs give different words
        weights.data.mul_(2)
    return made.eval()


def written_one_by_one(model, given, prompt, *, at_most):
    """The reference: the likeliest word of a whole forward pass, again and again."""
    words = list(prompt)
    while len(words) - len(prompt) < at_most:
        after = int(likeliest(model(given[None], torch.tensor([words])))[0, -1])
        if after == END:
            break
        words.append(after)
    return words[len(prompt) :]


@torch.no_grad()
def test_writing_with_a_cache_for_many_is_writing_without_for_each(model):
    cached = model.write(TOKENS, PROMPTS, at_most=10)
    assert cached == model.write(TOKENS, PROMPTS, at_most=10, use_cache=False)
    assert cached == [written_one_by_one(model, *pair, at_most=10) for pair in zip(TOKENS, PROMPTS, strict=True)]
    assert not {word for row in cached for word in row} & set(NEVER_WRITTEN)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(model):
    rows = [[START, 5, 6], [START, 7, 8, 9, 10, 11]]
    together = model(TOKENS[:2], padded(rows))
    for i, row in enumerate(rows):
        alone = model(TOKENS[i : i + 1], torch.tensor([row]))
        torch.testing.assert_close(together[i, : len(row)], alone[0])


@torch.no_grad()
def test_texts_side_by_side_are_as_if_each_stood_alone(model):
    texts = torch.randint(4, WORDS, (3, 2, 5), generator=torch.Generator().manual_seed(1))
    blocks = torch.arange(2).repeat_interleave(5).expand(3, -1)
    together = model(TOKENS, texts.flatten(1), blocks).view(3, 2, 5, WORDS)
    for block in range(2):
        torch.testing.assert_close(together[:, block], model(TOKENS, texts[:, block]))


@torch.no_grad()
def test_a_word_is_predicted_from_the_codes_and_the_words_before_it_alone(model):
    words = torch.randint(4, WORDS, (3, 6), generator=torch.Generator().manual_seed(2))
    before, later, codes = model(TOKENS, words), words.clone(), TOKENS.clone()
    later[:, 4] = (later[:, 4] + 1) % 16 + 4
    codes[:, -1] = (codes[:, -1] + 9) % 64
    assert torch.equal(model(TOKENS, later)[:, :4], before[:, :4])
    assert not torch.isclose(model(TOKENS, later)[:, 4], before[:, 4]).all()
    assert not torch.isclose(model(codes, words)[:, 0], before[:, 0]).all()


def test_drawn_words_depend_on_the_seed_and_leave_the_random_stream_alone(model):
    state = torch.get_rng_state()
    first, again = (model.write(TOKENS, PROMPTS, at_most=8, temperature=1.0, seed=1) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first == again != model.write(TOKENS, PROMPTS, at_most=8, temperature=1.0, seed=2)


def test_bad_prompts_and_temperatures_are_refused(model):
    with pytest.raises(ValueError, match="1 of them empty"):
        model.write(TOKENS, [[START], [], [START]], at_most=2)
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        model.write(TOKENS, PROMPTS[:2], at_most=2)
    with pytest.raises(ValueError, match="temperature"):
        model.write(TOKENS, PROMPTS, at_most=2, temperature=0.0)


def test_the_loss_is_the_mean_over_trained_words():
    logits = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    targets = torch.tensor([[1, NOT_TRAINED, 4], [NOT_TRAINED, NOT_TRAINED, 0]])
    log = logits.float().log_softmax(2)
    torch.testing.assert_close(word_loss(logits, targets), -(log[0, 0, 1] + log[0, 2, 4] + log[1, 2, 0]) / 3)
    none = word_loss(logits, torch.full((2, 3), NOT_TRAINED))
    none.backward()
    assert none == 0 and logits.grad.abs().sum() == 0


def test_a_transformer_for_codes_learns_the_row_of_token_0():
    net = causal_transformer(6, ModelSettings(16, 1, 2), longest=8)
    net(torch.zeros(1, 4).long()).logits.square().sum().backward()
    assert net.get_input_embeddings().weight.grad[PADDING].abs().sum() > 0
