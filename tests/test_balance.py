"""attach(balance=...): what reaches the host at each tap, the latent and the codebook, and what does not."""

import copy
import gc
import math
import re
import warnings

import pytest
import torch
from helpers.conformance import texts
from helpers.plain_training import IMAGES, Plain, attached, gradients, one_step, own_loss
from torch.utils.checkpoint import set_checkpoint_early_stop

import tavq_plugin as tavq
from tavq_plugin.attach import CHECKED_EVERY
from tavq_plugin.losses.alignment_settings import BALANCE

RATIO = 0.7


@pytest.fixture
def host():
    return Plain()


def watched_step(host, align, *, of_host=1.0, of_align=1.0, dtype=None):
    """The gradients that arrive at each tap, the latent and the codebook, before the alignment's and with it."""
    before, after, tensors = {}, {}, {"codebook": host.vq.embedding.weight}

    def keep(kept, name):
        return tensors[name].register_hook(lambda grad: kept.__setitem__(name, grad.clone()))

    def watch(name, value):
        tensors[name] = value
        keep(before, name)

    handles = [
        host.fine.register_forward_hook(lambda module, args, output: watch("fine", output)),
        host.mid.register_forward_hook(lambda module, args, output: watch("mid", output)),
        host.vq.register_forward_pre_hook(lambda module, args: watch("latent", args[0])),
    ]
    if tensors["codebook"].requires_grad:
        handles.append(keep(before, "codebook"))
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output, quantizer_loss = host(IMAGES)
        added = align(texts())
    for name in before.keys() | tensors.keys():
        if tensors[name].requires_grad:
            handles.append(keep(after, name))
    (of_host * own_loss((output.float(), quantizer_loss)) + of_align * added).backward()
    for handle in handles:
        handle.remove()
    return before, after


def assert_close(ours, expected, **tolerance):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_ratio_holds_everywhere_and_no_image_is_opposed(host, dtype):
    _, align = attached(host, balance=RATIO)
    before, after = watched_step(host, align, dtype=dtype)
    assert set(before) == set(after) == {"fine", "mid", "latent", "codebook"}
    rounding = 1e-4 if dtype is None else 3e-2
    for name, own in before.items():
        added = after[name].double() - own.double()
        torch.testing.assert_close(
            added.norm() / own.double().norm(), torch.tensor(RATIO).double(), rtol=rounding, atol=0
        )
        along = (added * own).flatten(0 if name == "codebook" else 1).sum(-1)
        assert (along >= -rounding * added.norm() * own.double().norm()).all(), name


def test_each_level_may_have_its_own_ratio(host):
    ratios = {"fine": 0.25, "mid": 0.0, "latent": 1.5, "codebook": 1.5}
    _, align = attached(host, balance=[0.25, 0.0, 1.5])
    before, after = watched_step(host, align)
    for name, ratio in ratios.items():
        assert ((after[name] - before[name]).norm() / before[name].norm()).item() == pytest.approx(ratio, rel=1e-4)
    assert "balance 0.25, 0, 1.5; level weights" in align.summary()


def gradients_of_both(**factors):
    """The gradients of a new host and its attachment, in a step with these factors on the two losses."""
    host = Plain()
    _, align = attached(host, balance=RATIO)
    watched_step(host, align, **factors)
    return gradients(host), gradients(align)


def test_the_scale_of_the_hosts_loss_changes_nothing_else():
    (host, align), (scaled_host, scaled_align) = gradients_of_both(), gradients_of_both(of_host=1000.0)
    assert_close([grad / 1000 for grad in scaled_host], host, rtol=1e-4, atol=1e-7)
    assert_close(scaled_align, align, rtol=0, atol=0)


def test_a_factor_on_the_scalar_reaches_the_plug_in_alone():
    (host, align), (same_host, scaled_align) = gradients_of_both(), gradients_of_both(of_align=4.0)
    assert_close(same_host, host, rtol=0, atol=0)
    assert_close([grad / 4 for grad in scaled_align], align, rtol=0, atol=0)


def test_a_loss_scaler_changes_nothing():
    found = []
    for scale in (None, 2.0**12):
        host = Plain()
        optimizer, align = attached(host, balance=RATIO)
        scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
        scaler.scale(own_loss(host(IMAGES)) + align(texts())).backward()
        scaler.unscale_(optimizer)
        found.append(gradients(host, align))
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


def test_the_heads_learn_as_in_the_weighted_sum_and_the_levels_loss_stays_with_them():
    found = []
    for settings in ({"balance": RATIO}, {"weight": 0.3}):
        host = Plain()
        _, align = attached(host, **settings)
        one_step(host, align)
        found.append((align.last["alignment"], align.last["codebook_loss"], gradients(align)))
    assert found[0][:2] == found[1][:2]
    heads = len(list(align.alignment.parameters()))
    assert_close(found[0][2][-heads:], found[1][2][-heads:], rtol=1e-5, atol=1e-8)


def alone():
    host = Plain()
    own_loss(host(IMAGES)).backward()
    return gradients(host)


def test_balance_zero_sends_the_host_nothing(host):
    _, align = attached(host, balance=0.0)
    one_step(host, align)
    assert_close(gradients(host), alone(), rtol=0, atol=0)
    assert any(grad.norm() > 0 for grad in gradients(align))


def test_a_second_backward_adds_nothing(host):
    _, align = attached(host, balance=RATIO)
    loss = own_loss(host(IMAGES)) + align(texts())
    loss.backward(retain_graph=True)
    host.zero_grad()
    loss.backward()
    assert_close(gradients(host), alone(), rtol=0, atol=0)


def test_another_backward_gets_nothing_of_it(host):
    """A pass of a discriminator, or a step that leaves the alignment out."""
    _, align = attached(host, balance=RATIO)
    added = align_of(host, align, 1 - IMAGES)
    own_loss(host(IMAGES)).backward()
    assert_close(gradients(host), alone(), rtol=0, atol=0)
    assert added.requires_grad and len(host.vq.embedding.weight._backward_hooks) == 1
    del added
    gc.collect()
    assert not host.vq.embedding.weight._backward_hooks


def align_of(host, align, images):
    host(images)
    return align(texts())


@pytest.mark.parametrize("early_stop", [True, False])
def test_non_reentrant_checkpointing_gives_the_same_gradients(host, early_stop):
    _, align = attached(host, balance=RATIO)
    expected = one_step(host, align)
    checkpointed = Plain(checkpointed=False)
    _, again = attached(checkpointed, balance=RATIO)
    with set_checkpoint_early_stop(early_stop):
        assert_close(one_step(checkpointed, again), expected)


def test_a_frozen_codebook_has_no_part(host):
    host.vq.embedding.requires_grad_(False)
    _, align = attached(host, balance=RATIO)
    before, after = watched_step(host, align)
    assert set(before) == set(after) == {"fine", "mid", "latent"}
    assert align.last["gradient_cosine"].shape == (3,) and host.vq.embedding.weight.grad is None


def test_images_without_text_add_nothing(host):
    _, align = attached(host, balance=RATIO)
    none = {name: tavq.Units(units.embeddings, torch.zeros_like(units.mask)) for name, units in texts().items()}
    (own_loss(host(IMAGES)) + align(none)).backward()
    assert_close(gradients(host), alone(), rtol=0, atol=0)
    assert align.last["gradient_skipped"].sum() == 0


SKIPPED = "host's own gradient was 0, absent or not finite at"


def test_a_host_gradient_of_zero_is_counted_and_told_once(host):
    _, align = attached(host, balance=RATIO)
    (0 * own_loss(host(IMAGES)) + align(texts())).backward()
    assert all((grad == 0).all() for grad in gradients(host))
    with pytest.warns(UserWarning, match=rf"{SKIPPED} fine \(1\), mid \(1\).*taps=.*balance=None"):
        assert align.last["gradient_skipped"].tolist() == [1, 1, 1, 1]
    one_step(host, align)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert align.last["gradient_skipped"].tolist() == [1, 1, 1, 1]
        tavq.detach(host)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_where_the_hosts_gradient_is_0_or_not_finite_nothing_is_added(host, value):
    """At one tap alone: above it, the encoder gets what the host sends; the other places are balanced."""
    _, align = attached(host, balance=RATIO)
    seen = {}

    def replace_gradient(module, args, output):
        output.register_hook(lambda grad: torch.full_like(grad, value))  # runs before ours
        args[0].register_hook(lambda grad: seen.__setitem__("above", grad))

    handle = host.fine.register_forward_hook(replace_gradient)
    before, after = watched_step(host, align)
    handle.remove()
    assert torch.equal(after["fine"], torch.full_like(after["fine"], value)) or after["fine"].isnan().all()
    assert (seen["above"] == 0).all() if value == 0 else not seen["above"].isfinite().any()
    for name in ("mid", "latent", "codebook"):
        assert ((after[name] - before[name]).norm() / before[name].norm()).item() == pytest.approx(RATIO, rel=1e-4)
    with pytest.warns(UserWarning, match=rf"{SKIPPED} fine \(1\);"):
        tavq.detach(host)


def test_a_loop_that_reads_no_figure_is_told_within_a_hundred_steps(host):
    _, align = attached(host, balance=RATIO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(CHECKED_EVERY - 1):
            (0 * own_loss(host(IMAGES)) + align(texts())).backward()
    host(IMAGES)
    with pytest.warns(UserWarning, match=rf"{SKIPPED} fine \({CHECKED_EVERY - 1}\)"):
        align(texts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tavq.detach(host)


def test_a_codebook_to_which_the_host_sends_nothing_is_counted(host):
    _, align = attached(host, balance=RATIO)
    output, _ = host(IMAGES)
    ((output - IMAGES).abs().mean() + align(texts())).backward()  # without the quantizer's loss
    assert host.vq.embedding.weight.grad is None
    with pytest.warns(UserWarning, match=rf'{SKIPPED} vq.embedding.weight \(1\);.*grad_to="encoder"'):
        assert align.last["gradient_skipped"].tolist() == [0, 0, 0, 1]


def test_a_sum_and_a_healthy_balance_warn_of_nothing():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for settings in ({"balance": RATIO}, {"weight": 0.3}, {"weight": 0}):
            host = Plain()
            _, align = attached(host, **settings)
            one_step(host, align)
            tavq.detach(host)
    assert found == []


def test_the_figures_are_known_after_the_backward(host):
    _, align = attached(host, balance=RATIO)
    host(IMAGES)
    loss = align(texts())
    assert align.last["gradient_cosine"].isnan().all()
    assert loss == align.last["alignment"] + align.last["codebook_loss"]
    one_step(host, align)
    assert align.last["gradient_cosine"].abs().max() <= 1 and (align.last["gradient_ratio"] > 0).all()


def test_each_figure_has_the_name_of_its_tensor(host):
    _, align = attached(host, balance=RATIO)
    assert align.last.gradient_names == ()
    one_step(host, align)
    names = align.last.gradient_names
    assert names == ("fine", "mid", "vq (input)", "vq.embedding.weight")
    assert all(len(align.last[f"gradient_{figure}"]) == len(names) for figure in ("cosine", "ratio", "skipped"))
    tavq.detach(host)
    _, align = attached(host, weight=0.3)
    one_step(host, align)
    assert align.last.gradient_names == () and "gradient_ratio" not in align.last


def test_a_backward_without_the_hosts_loss_is_refused(host):
    _, align = attached(host, balance=RATIO)
    host(IMAGES)
    with pytest.raises(RuntimeError, match=r"never came by at fine, mid, vq \(input\).*balance=None"):
        align(texts()).backward()
    one_step(host, align)


@pytest.mark.parametrize("rise", [0.0, 0.5])
def test_the_ratio_rises_and_falls_over_the_run_and_the_count_is_saved(host, rise):
    optimizer, align = attached(host, balance=RATIO, total_steps=4, alignment={"rise": rise})
    ratios = []
    for _ in range(5):
        before, after = watched_step(host, align)
        ratios.append(((after["latent"] - before["latent"]).norm() / before["latent"].norm()).item() if after else 0.0)
        optimizer.step()
        optimizer.zero_grad()
    risen = (lambda share: min(1, share / rise)) if rise else lambda share: 1
    expected = [RATIO * risen(step / 4) * 0.5 * (1 + math.cos(math.pi * min(1, step / 4))) for step in range(5)]
    assert ratios == pytest.approx(expected, rel=1e-3, abs=1e-6)
    state = align.state_dict()
    tavq.detach(host)
    assert not optimizer._optimizer_step_post_hooks
    _, again = attached(host, balance=RATIO, total_steps=10)
    again.load_state_dict(state, strict=True)
    assert again.progress.share == 0.5


def test_a_rise_needs_the_length_of_the_run_and_is_a_share_of_it(host):
    with pytest.raises(ValueError, match="give total_steps="):
        attached(host, alignment={"rise": 0.3})
    with pytest.raises(ValueError, match="below 1, got 1"):
        attached(host, total_steps=4, alignment={"rise": 1.0})
    _, align = attached(host, balance=RATIO, total_steps=50, alignment={"rise": 0.3})
    assert "balance rises from 0 over the first 30% of the run and falls to 0 over 50 steps" in align.summary()


def test_copies_are_inert_and_detach_leaves_no_trace(host):
    _, align = attached(host, balance=RATIO)
    host(IMAGES)
    pending = align(texts())
    twin = copy.deepcopy(host)
    own_loss(twin(IMAGES)).backward()
    assert_close(gradients(twin), alone(), rtol=0, atol=0)
    del pending
    gc.collect()
    one_step(host, align)
    tavq.detach(host)
    assert not any(p._backward_hooks for p in host.parameters())
    assert not any(module._forward_hooks for module in host.modules())
    host.zero_grad()
    own_loss(host(IMAGES)).backward()
    assert_close(gradients(host), alone(), rtol=0, atol=0)


def test_training_lowers_the_alignment(host):
    optimizer, align = attached(host, balance=RATIO)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        one_step(host, align)
        optimizer.step()
        values.append(align.last["alignment"].item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"balance": -1.0}, "balance must be a number, 0 or more"),
        ({"balance": math.nan}, "balance must be a number, 0 or more"),
        ({"balance": math.inf}, "balance must be a number, 0 or more"),
        ({"balance": "much"}, "balance must be a number, 0 or more"),
        ({"balance": (1.0, math.nan, 1.0)}, "balance must be a number, 0 or more"),
        ({"balance": (1.0, -1.0, 1.0)}, "balance must be a number, 0 or more"),
        ({"balance": (1.0, 1.0)}, "balance has 2 entries for 3 levels"),
        ({"balance": 1.0, "weight": 0.3}, "got weight=0.3 and balance=1.0: give balance=None .*, or leave weight out"),
        (
            {"balance": BALANCE, "alignment": {"weight_end": 0.1}},
            re.escape(f"got weight_end=0.1 and balance={BALANCE}: give balance=None"),
        ),
        ({"weight": math.inf}, "weight must be 0 or more and finite"),
        ({"alignment": {"heads_rate": 0.0}}, "heads_rate must be above 0"),
        ({"balance": 1.0, "total_steps": 0}, "total_steps must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(host, settings, said):
    with pytest.raises(ValueError, match=said):
        attached(host, **settings)
    assert not any(module._forward_hooks for module in host.modules())


def test_a_frozen_encoder_is_refused(host):
    host.stem.requires_grad_(False), host.fine.requires_grad_(False)
    _, align = attached(host, balance=RATIO)
    host(IMAGES)
    with pytest.raises(RuntimeError, match=r"tap 'fine' carries no gradient.*balance=None"):
        align(texts())


def test_the_summary_shows_the_settings(host):
    _, align = attached(host, balance=RATIO, total_steps=50)
    assert "balance 0.7; level weights 2.5, 2.5, 0.35; no contrast" in align.summary()
    assert "schedule    balance falls to 0 over 50 steps" in align.summary()
    assert "rates       heads 2 × that of the optimizer's first group" in align.summary()
    assert str(align).endswith("gradient to the encoder and the codebook, balance 0.7")
    with pytest.raises(ValueError, match="weight has no effect with balance 0.7: attach with balance=None"):
        align.weight = 0.5
    tavq.detach(host)
    _, align = attached(host, weight=0.3)
    assert "weight 0.3; level weights" in align.summary() and "weight constant" in align.summary()
