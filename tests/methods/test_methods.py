"""Rules for every method: where gradient goes, zero loss without text, seeds, saved state, an unchanged host class."""

import pytest
import torch
from helpers.small_methods import HOSTS, corpus, made, silent, step_of, widened
from helpers.tiny_hosts import tiny

from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.methods.base import texts_of

# methods that read the step's texts
READ_TEXT = ("lgvq", "tavq-weighted-sum", "tavq", "tavq-uniform-plan", "l2-distil", "infonce")


def test_the_table_lists_every_method_by_its_name():
    assert all(method_class(name).name == name for name in METHODS)
    assert [name for name in METHODS if not method_class(name).adversarial] == ["vqvae"]
    with pytest.raises(KeyError, match="no method 'vq': one of vqvae, vqgan"):
        method_class("vq")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", METHODS)
def test_a_host_trains_and_its_own_code_loads_the_weights(name, host):
    before = tiny(host).state_dict()
    tokenizer, one = made(name, host)
    parameters = [*tokenizer.parameters(), *one.parameters()]
    assert len({id(p) for p in parameters}) == len(parameters)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for number in range(2):
        step = step_of(tokenizer, number=number)
        terms = one(step)
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        optimizer.zero_grad()
        (step.reconstruction.square().mean() + step.codes.loss + sum(terms.values())).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())
        optimizer.step()
        one.after_update(step)
    codebook = tokenizer.adapter.codebook().detach().clone()
    one.finish()
    one.finish()
    after = tokenizer.host.state_dict()
    assert list(after) == list(before) and any(not torch.equal(after[key], before[key]) for key in before)
    fresh = tiny(host)
    fresh.load_state_dict(after, strict=True)
    assert torch.equal(tokenizer.adapter.codebook(), codebook)
    assert not [key for key in one.state_dict() if key in after]


@pytest.mark.parametrize("name", READ_TEXT)
def test_without_text_loss_and_gradient_are_exactly_0(name):
    tokenizer, one = made(name)
    texts = texts_of(corpus(), torch.tensor([0, 1, 2]), torch.device("cpu"))
    step = step_of(tokenizer, texts=silent(texts))
    terms = one(step)
    assert terms and all(term == 0 for term in terms.values())
    of_host = step.reconstruction.square().mean() if tokenizer.on_copies else 0.0  # a balance needs the host's own
    (of_host + sum(terms.values())).backward()
    assert all((p.grad == 0).all() for p in one.parameters())  # touched, for DDP
    found = {key: p.grad for key, p in tokenizer.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    alone, _ = made(name)
    if tokenizer.on_copies:
        step_of(alone).reconstruction.square().mean().backward()
    expected = {key: p.grad for key, p in alone.named_parameters() if p.grad is not None}
    assert found.keys() <= expected.keys() and all(torch.equal(found.get(key, 0 * g), g) for key, g in expected.items())


@pytest.mark.parametrize("name", READ_TEXT)
def test_further_padding_changes_nothing(name):
    texts = texts_of(corpus(), torch.tensor([0, 1, 2]), torch.device("cpu"))
    (host, one), (other, two) = made(name), made(name)
    one.eval(), two.eval()  # the draws of dropout depend on the shape
    values, padded = one(step_of(host, texts=texts)), two(step_of(other, texts=widened(texts)))
    for key in values:
        torch.testing.assert_close(padded[key], values[key], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", READ_TEXT)
def test_an_image_without_text_changes_nothing(name):
    (host, one), (other, two) = made(name), made(name)
    values, more = one(step_of(host, (0, 1, 2))), two(step_of(other, (0, 1, 2, 3)))
    for key in values.keys() - {"masked"}:  # the number of texts changes which words are masked
        torch.testing.assert_close(more[key], values[key], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_one_image_trains(name):
    tokenizer, one = made(name)
    for rows in ((0,), (3,)):
        step = step_of(tokenizer, rows)
        loss = sum(one(step).values()) + step.codes.loss + step.reconstruction.square().mean()
        loss.backward()
        one.after_update(step)
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_determined_by_its_seed(name):
    states = []
    for seed in (0, 0, 1):
        tokenizer, one = made(name, seed=seed)
        step = step_of(tokenizer)
        terms = {key: term.detach() for key, term in one(step).items()}
        one.after_update(step)
        states.append({**tokenizer.state_dict(), **one.state_dict(), **terms})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(torch.equal(states[0][key], states[2][key]) for key in states[0]) == (name in ("vqvae", "vqgan"))


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_method_continues_as_if_never_stopped(name):
    tokenizer, one = made(name)
    for _ in range(2):
        one(step_of(tokenizer))
        one.after_update(step_of(tokenizer))
    host, state = tokenizer.state_dict(), one.state_dict()
    again_tokenizer, again = made(name, seed=5)
    again_tokenizer.load_state_dict(host)
    again.load_state_dict(state)
    for this, that in ((tokenizer, one), (again_tokenizer, again)):
        torch.manual_seed(0)  # Gaussian samples are drawn from the global stream, which a checkpoint holds
        that.terms = [term.detach() for term in that(step_of(this)).values()]
        that.after_update(step_of(this))
    assert all(torch.equal(a, b) for a, b in zip(one.terms, again.terms, strict=True))
    assert torch.equal(tokenizer.adapter.codebook(), again_tokenizer.adapter.codebook())
