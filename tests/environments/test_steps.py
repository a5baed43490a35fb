"""One process: autocast, checkpointing, copies, accumulation, and generator and discriminator passes."""

import copy
import pickle

import pytest
import torch
from einops import rearrange
from helpers.conformance import texts
from helpers.plain_training import DESCRIPTION, IMAGES, Plain, attached, gradients, one_step, own_loss
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import set_checkpoint_early_stop

import tavq_plugin as tavq
from tavq_plugin.hosts.quantization import nearest

STALE = "no forward of the host was recorded"


@pytest.fixture
def host():
    return Plain()


def test_levels_are_quantized_in_float32_under_autocast(host):
    _, align = attached(host)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, vq_loss = host(IMAGES)
        extra = align(texts())
    assert output.dtype == torch.bfloat16 and extra.dtype == torch.float32 and extra.isfinite()
    table = host.vq.embedding.weight
    for level in align.codes.levels[:2]:
        assert level.latent.dtype == level.quantized.dtype == level.loss.dtype == torch.float32
        assert torch.equal(level.indices, nearest(level.latent.double(), table.double()))
        assert torch.equal(level.quantized, rearrange(table[level.indices], "b h w c -> b c h w"))
    (own_loss((output.float(), vq_loss)) + extra).backward()
    assert all(grad.isfinite().all() for grad in gradients(host, align))
    assert host.stem.weight.grad.norm() > 0


@pytest.mark.parametrize("early_stop", [True, False])  # False: blocks run a second time to their end, with their hooks
def test_non_reentrant_checkpointing_gives_the_same_gradients(host, early_stop):
    _, align = attached(host)
    expected = one_step(host, align)
    checkpointed = Plain(checkpointed=False)
    _, again = attached(checkpointed)
    with set_checkpoint_early_stop(early_stop):
        found = one_step(checkpointed, again)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match=STALE):  # a block's second run, in backward, is not recorded
        again(texts())


def test_reentrant_checkpointing_is_refused_with_the_fix():
    host = Plain(checkpointed=True)
    _, align = attached(host)
    host(IMAGES)
    with pytest.raises(RuntimeError, match=r"fine, mid ran under no_grad .*use_reentrant=False"):
        align(texts())
    tavq.detach(host)
    with pytest.raises(RuntimeError, match=r"fine, mid ran under no_grad .*use_reentrant=False"):
        tavq.wrap(host, **DESCRIPTION)(IMAGES)


def test_an_evaluation_pass_of_a_wrapped_host_is_no_error():
    tokenizer = tavq.wrap(Plain(checkpointed=True), **DESCRIPTION)
    with torch.no_grad():
        _, codes = tokenizer(IMAGES)
    assert len(codes.levels) == 3


def test_an_averaged_copy_never_records_for_the_original(host):
    optimizer, align = attached(host)
    average = AveragedModel(host, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        optimizer.zero_grad()
        one_step(host, align)
        optimizer.step()
        average.update_parameters(host)
        average(IMAGES)
        with pytest.raises(RuntimeError, match=STALE):
            align(texts())
    host(IMAGES)
    captured = dict(align.recorder.seen)
    average(IMAGES + 1)
    assert all(align.recorder.seen[path] is call for path, call in captured.items())


def test_copies_keep_no_tensor_of_the_original(host):
    _, align = attached(host)
    host(IMAGES)
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        recorders = {hook.recorder for module in twin.modules() for hook in module._forward_hooks.values()}
        assert recorders and align.recorder not in recorders
        twin(IMAGES)
        assert all(not recorder.seen for recorder in recorders)
    assert align(texts()).requires_grad


def test_a_tokenizer_and_an_alignment_pickle(host):
    tokenizer = tavq.wrap(host, **DESCRIPTION)
    align = tavq.TextAlignment(tokenizer, 6)
    expected = align(tokenizer(IMAGES)[1], texts())
    again, aligned = pickle.loads(pickle.dumps((tokenizer, align)))
    assert again.host is again.adapter.model is not host
    assert torch.equal(aligned(again(IMAGES)[1], texts()), expected)


def test_a_copied_attachment_is_inert_and_the_original_still_works(host):
    optimizer, align = attached(host)
    twin = copy.deepcopy(align)
    assert twin.adapter.model is not host
    twin.adapter.model(IMAGES)
    with pytest.raises(RuntimeError, match=STALE):
        twin(texts())
    optimizer.zero_grad()
    one_step(host, align)


@pytest.mark.parametrize("settings", [{"weight": 0.3}, {"balance": 0.5}], ids=["weight", "balance"])
def test_an_attachment_is_copied_after_a_step_too(host, settings):
    _, align = attached(host, **settings)
    one_step(host, align)
    twin = copy.deepcopy(align)
    assert twin.codes is None and align.codes is not None
    for name, value in align.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


@pytest.mark.parametrize("settings", [{}, {"balance": 0.7}], ids=["weight", "balance"])
def test_accumulated_gradients_are_the_sum_of_both(host, settings):
    _, align = attached(host, **settings)
    parts = [IMAGES, 1 - IMAGES]
    expected = None
    for part in parts:
        host.zero_grad(), align.zero_grad()
        (own_loss(host(part), part) + align(texts())).backward()
        found = gradients(host, align)
        expected = found if expected is None else [a + b for a, b in zip(expected, found, strict=True)]
    host.zero_grad(), align.zero_grad()
    for part in parts:
        (own_loss(host(part), part) + align(texts())).backward()
    for a, b in zip(gradients(host, align), expected, strict=True):
        torch.testing.assert_close(a, b)


def gan_step(host, align, optimizers, *, generator, discriminator):
    """A step of a GAN trainer: each pass runs the host's forward; only the generator's loss has the alignment."""
    critic = optimizers[1].param_groups[0]["params"][0]
    if generator:
        optimizers[0].zero_grad()
        output = host(IMAGES)
        (own_loss(output) - (output[0] * critic).mean() + align(texts())).backward()
        optimizers[0].step()
    if discriminator:
        optimizers[1].zero_grad()
        output = host(IMAGES)
        ((output[0].detach() - IMAGES) * critic).mean().backward()
        optimizers[1].step()


@pytest.mark.parametrize(
    "passes",
    [[(True, True)] * 3, [(True, False), (False, True)] * 3, [(False, True), (True, False)] * 3],
    ids=["both in one step", "alternating", "discriminator first"],
)
def test_the_alignment_is_computed_once_per_generator_pass(host, passes):
    calls = []
    optimizer, align = attached(host)
    align.alignment.register_forward_hook(lambda *call: calls.append(1))
    critic = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3, 32, 32))], lr=0.1)
    heads = [p.detach().clone() for p in align.parameters()]
    for generator, discriminator in passes:
        gan_step(host, align, (optimizer, critic), generator=generator, discriminator=discriminator)
    assert len(calls) == 3
    assert not any(torch.equal(a, b) for a, b in zip(heads, align.parameters(), strict=True))


def test_the_latest_forward_is_used(host):
    _, align = attached(host)
    host(1 - IMAGES)
    host(IMAGES)
    late = align(texts())
    host(IMAGES)
    torch.testing.assert_close(align(texts()), late)
    with torch.inference_mode():
        host(IMAGES)
    with pytest.raises(RuntimeError, match="ran under no_grad"):
        align(texts())
    with pytest.raises(RuntimeError, match=STALE):
        align(texts())
