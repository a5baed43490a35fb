"""Two processes under DDP, FSDP2 and accelerate: the ranks agree with each other and with one process."""

import pytest
import torch
from helpers import environment_cases as cases
from helpers import environment_contrasts as contrasts
from helpers import environment_methods as methods
from helpers.plain_training import in_one_process, rank_batch
from helpers.ranks import TwoRanks


@pytest.fixture(scope="module")
def ranks():
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    two = TwoRanks()
    yield two
    two.stop()


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


EXACT = dict(rtol=0, atol=0)
CLOSE = dict(rtol=1e-3, atol=1e-4)  # Adam divides by the gradient's size, which amplifies rounding


@pytest.mark.parametrize("find", [False, True])
@pytest.mark.parametrize("batches", [{}, {"without_text": True}, {"uneven": True}], ids=lambda b: next(iter(b), "even"))
def test_heads_and_codebooks_agree_under_ddp(ranks, find, batches):
    one, other = ranks.both(cases.attached_under_ddp, find, batches)
    assert_equal(one, other, **EXACT)
    assert_equal(one, in_one_process(**batches), **CLOSE)


@pytest.mark.parametrize("find", [False, True])
@pytest.mark.parametrize("batches", [{}, {"without_text": True}, {"uneven": True}], ids=lambda b: next(iter(b), "even"))
def test_balanced_gradients_agree_under_ddp(ranks, find, batches):
    """The hooks act before the reduction, so that both ranks take the mean of what each one balanced."""
    balanced = {"balance": 0.7}
    one, other = ranks.both(cases.attached_under_ddp, find, batches, balanced)
    assert_equal(one, other, **EXACT)
    assert_equal(one, in_one_process(settings=balanced, **batches), **CLOSE)


@pytest.mark.parametrize("find", [False, True])
@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"balance": 0.0}], ids=lambda s: next(iter(s)))
def test_weight_or_balance_zero_waits_for_no_gradient(ranks, find, settings):
    assert_equal(*ranks.both(cases.attached_under_ddp, find, {}, settings), **EXACT)


def test_the_codebook_receives_the_mean_of_what_each_rank_balanced(ranks):
    """At the reduction the ratio of each rank holds; after it only the mean is there, which both ranks have."""
    for before, own, after in ranks.both(cases.at_the_codebook):
        torch.testing.assert_close((own - before).norm() / before.norm(), torch.tensor(0.7), rtol=1e-4, atol=0)
        assert not torch.allclose(own, after, rtol=1e-3)
    (_, first, mean), (_, second, same) = ranks.both(cases.at_the_codebook)
    assert torch.equal(mean, same)
    torch.testing.assert_close(mean, (first + second) / 2)


@pytest.mark.parametrize("find", [False, True])
def test_a_wrapped_host_trains_under_ddp(ranks, find):
    assert_equal(*ranks.both(cases.wrapped_under_ddp, find), **EXACT)


def test_heads_that_would_drift_are_refused(ranks):
    for messages in ranks.both(cases.out_of_step):
        assert len(messages) == 3
        assert all("would drift apart" in text and "DistributedDataParallel(" in text for text in messages)


@pytest.mark.parametrize("settings", [{"weight": 0.2}, {"balance": 0.7}], ids=lambda s: next(iter(s)))
def test_gradients_accumulate_without_synchronization(ranks, settings):
    for accumulated, at_once in ranks.both(cases.accumulated_under_ddp, settings):
        assert len(accumulated) == len(at_once)
        for a, b in zip(accumulated, at_once, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [[], ["vq"], ["fine", "mid"]], ids=lambda parts: "+".join(["root", *parts]))
def test_a_sharded_host_trains_like_an_unsharded_one(ranks, parts):
    one, other = ranks.both(cases.attached_under_fsdp, parts, {"balance": None})
    assert_equal(one, other, **EXACT)
    assert_equal(one, in_one_process(settings={"balance": None}), **CLOSE)


def test_balanced_gradients_of_a_sharded_host(ranks):
    settings = {"balance": 0.7, "grad_to": "encoder"}
    one, other = ranks.both(cases.attached_under_fsdp, ["fine", "mid"], settings)
    assert_equal(one, other, **EXACT)
    assert_equal(one, in_one_process(settings=settings), **CLOSE)
    assert all('grad_to="encoder", or balance=None' in said for said in ranks.both(cases.refused_under_fsdp))


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("counts", [(3, 3), (4, 2), (2, 5)])
@pytest.mark.parametrize("without_text", [(), (1, 4), (0, 1, 2)], ids=["all with text", "two without", "three without"])
def test_the_contrast_over_two_ranks_has_the_gradient_of_one_process(ranks, levels, counts, without_text):
    """The mean of the ranks' losses is the loss of the whole batch, and so is its gradient."""
    losses, *gradients = zip(*ranks.both(contrasts.of_one_rank, levels, counts, without_text), strict=True)
    loss, *expected = contrasts.loss_and_gradients(*contrasts.whole_batch(levels, sum(counts), without_text))
    exactly = dict(rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sum(losses) / 2, loss, **exactly)
    for parts, whole in zip(gradients, expected, strict=True):
        assert whole.norm() > 0.1
        torch.testing.assert_close(torch.cat(parts, 1) / 2, whole, **exactly)


METHODS = {"cvq": {}, "lgvq": {}, "vqct": {"threshold": 0}, "tavq": {"contrast": 0.1}}


@pytest.mark.parametrize("find", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_compared_methods_agree_under_ddp(ranks, name, find):
    assert_equal(*ranks.both(methods.compared_under_ddp, name, find, METHODS[name]), **EXACT)


def test_every_rank_moves_the_codes_that_one_process_would_move(ranks):
    (codebook, usage), other = ranks.both(methods.moved_by_cvq)
    assert torch.equal(codebook, other[0]) and torch.equal(usage, other[1])
    images = torch.cat([rank_batch(rank, uneven=True)[0] for rank in range(2)])
    expected = methods.moved(images)
    torch.testing.assert_close((codebook, usage), expected)


def test_accelerate_prepares_the_attachment(ranks):
    pytest.importorskip("accelerate")
    one, other = ranks.both(cases.prepared)
    assert_equal(one, other, **EXACT)
    assert_equal(one, in_one_process(), **CLOSE)


def test_counts_of_codes_are_summed_over_processes(ranks):
    from tavq_plugin.evaluation.metrics.codebook import sum_over_processes

    assert [counts.tolist() for counts in ranks.both(sum_over_processes, torch.tensor([1, 0, 2]))] == [[2, 0, 4]] * 2
