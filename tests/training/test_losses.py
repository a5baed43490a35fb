"""The loss: VQGAN equals a plain loop, β weighs the commitment, and a term that is not finite stops the run."""

import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.toy_corpus import HOST, corpus, recipe
from torch.nn.modules.module import register_module_forward_hook

import tavq_plugin as tavq
from tavq_plugin.pixels import to_float
from tavq_plugin.training import fit
from tavq_plugin.training.build import build
from tavq_plugin.training.build_host import build_host
from tavq_plugin.training.checkpoint import Checkpoints
from tavq_plugin.training.loop import TrainingLoop
from tavq_plugin.training.sampler import BatchSampler

pytest.importorskip("taming")
Accelerator = pytest.importorskip("accelerate").Accelerator


def train_plainly(settings, data):
    """Train the same host in a loop without the plug-in."""
    torch.manual_seed(settings.seed)
    host = build_host(settings.host, settings.resolution).train()
    adam = torch.optim.Adam(
        host.parameters(), lr=settings.optimizer.learning_rate, betas=settings.optimizer.betas, fused=True
    )
    rows = BatchSampler(data.n_train, batch_size=settings.batch_size, seed=settings.seed)
    for step in range(settings.steps):
        images = to_float(data.images[rows(step)])
        reconstruction, loss = host(images)
        adam.zero_grad()
        (F.l1_loss(reconstruction, images) + loss).backward()
        adam.step()
    return host.state_dict()


def test_vqgan_trains_the_host_as_a_plain_loop_does_and_the_levels_learn(tmp_path):
    settings, data = recipe(steps=3), corpus()
    fitted = fit("vqgan", settings, data, tmp_path / "run")
    expected = train_plainly(settings, data)
    ours = fitted.tokenizer.host.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert fitted.history[-1]["level"] < fitted.history[0]["level"]
    with_levels = fit("noisy", settings, data, tmp_path / "other").tokenizer.host.state_dict()
    assert not all(torch.equal(with_levels[name], expected[name]) for name in expected)


def test_balance_0_trains_the_host_as_a_plain_loop_does(tmp_path):
    settings, data = recipe(steps=3, options={"balance": 0.0}), corpus()
    fitted = fit("tavq", settings, data, tmp_path / "run")
    expected, ours = train_plainly(settings, data), fitted.tokenizer.host.state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert fitted.history[-1]["alignment"] > 0


def test_the_trainer_keeps_no_copies_of_the_hosts_tensors_after_a_step():
    loop = TrainingLoop(recipe(method="tavq", options={"balance": 1.0}), corpus(), Accelerator(cpu=True))
    loop.step()
    assert loop.module.last.codes.copies == () and loop.method.figures.names
    loop.close()


def apart(one, other):
    """The total difference between two runs' hosts and added levels."""
    ours, theirs = one.tokenizer.state_dict(), other.tokenizer.state_dict()
    return sum((ours[name] - theirs[name]).abs().sum() for name in ours).item()


def test_weight_0_leaves_the_tokenizer_alone_while_the_heads_learn(tmp_path):
    # the levels' gradient reaches the host with every method
    through = {**HOST, "wrap": {"detach_added_levels": False}}
    settings, data = recipe(host=through), corpus()
    weightless, aligned = (recipe(host=through, options={"weight": weight}) for weight in (0.0, 0.3))
    bare = fit("vqgan", settings, data, tmp_path / "bare")
    without, aligned = (
        fit("tavq", changed, data, tmp_path / name) for name, changed in (("without", weightless), ("aligned", aligned))
    )
    _, fresh = build(recipe(host=through, method="tavq"), data)
    heads = zip(fresh.parameters(), without.method.parameters(), strict=True)
    assert not any(torch.equal(before, after) for before, after in heads)
    assert all(row["alignment"] > 0 for row in without.history)
    assert apart(bare, without) < 1e-3 * apart(bare, aligned)  # at most rounding, which depends on memory addresses


def test_training_is_determined_by_its_seed(tmp_path):
    start = {"settle_share": 0.25, "revive_every": 2}
    one, two, other = (
        fit("tavq", recipe(start=start, seed=seed), corpus(), tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))
    )
    assert apart(one, two) < 1e-3 * apart(one, other)


def test_detached_levels_send_no_gradient_to_the_host_and_still_learn():
    host = build_host(recipe().host, 16)
    tokenizer = tavq.wrap(host, detach_added_levels=True)
    _, codes = tokenizer(to_float(corpus().images[:2]))
    codes.loss.backward()
    assert all(p.grad is None for p in host.parameters())
    assert all(p.grad.abs().sum() > 0 for p in tokenizer.hierarchy.parameters())


def test_beta_weighs_the_commitment_in_the_hosts_own_loss():
    torch.manual_seed(0)
    host = build_host(recipe().host, 16)
    tokenizer = tavq.wrap(host, grad_to="codebook")  # so that the last level holds the looked-up vectors themselves
    _, codes = tokenizer(to_float(corpus().images[:2]))
    z, e = codes.final.latent, codes.final.quantized
    to_latent, to_table = torch.autograd.grad(
        codes.quantizer_loss, (z, host.quantize.embedding.weight), retain_graph=True
    )
    torch.testing.assert_close(to_latent, 2 * 0.25 * (z - e).detach() / z.numel())
    own = torch.autograd.grad(F.mse_loss(e, z.detach()), host.quantize.embedding.weight)[0]
    torch.testing.assert_close(to_table, own)


def test_a_term_that_is_not_finite_is_named_and_the_checkpoint_stays(tmp_path):
    settings = recipe(steps=6, checkpoint_every=2, options={"broken_at": 3})
    with pytest.raises(FloatingPointError, match=r"^pull is nan at step 3 \(pixel .*lower optimizer.learning_rate"):
        fit("noisy", settings, corpus(), tmp_path / "run")
    state, _ = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert state["number"] == 2 and all(
        value.isfinite().all() for value in state["model"].values() if isinstance(value, torch.Tensor)
    )


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    settings = recipe(steps=4, checkpoint_every=1, optimizer={"learning_rate": 1e38, "warmup": 0})
    with pytest.raises(FloatingPointError, match="are not finite after step 1|at step 1"):
        fit("vqgan", settings, corpus(), tmp_path / "run")
    latest = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert latest is None or all(v.isfinite().all() for v in latest[0]["model"].values())


def test_bf16_keeps_the_quantizer_and_the_losses_in_float32(tmp_path):
    seen = []

    def look(module, args, output):
        if isinstance(module, VectorQuantizer2):
            seen.append((args[0].dtype, output[0].dtype, torch.is_autocast_enabled("cpu")))

    from taming.modules.vqvae.quantize import VectorQuantizer2

    handle = register_module_forward_hook(look)
    try:
        fitted = fit("vqgan", recipe(steps=2, precision="bf16"), corpus(), tmp_path / "half")
    finally:
        handle.remove()
    assert seen[-1] == (torch.float32, torch.float32, False)
    exact = fit("vqgan", recipe(steps=2), corpus(), tmp_path / "whole")
    assert fitted.history[-1]["pixel"] == pytest.approx(exact.history[-1]["pixel"], rel=0.02)
    assert fitted.history[-1]["pixel"] != exact.history[-1]["pixel"]


def test_accumulation_gives_the_same_losses_as_one_batch(tmp_path):
    one = fit("vqgan", recipe(batch_size=4), corpus(), tmp_path / "one").history
    two = fit("vqgan", recipe(batch_size=4, accumulation=2), corpus(), tmp_path / "two").history
    for a, b in zip(one, two, strict=True):
        for name in ("pixel", "quantizer", "level", "usage1", "usage3"):
            assert a[name] == pytest.approx(b[name], rel=1e-3), (name, a["step"])


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        (corpus(2, 0), {}, "toy has 0 training images: at least 2"),
        (corpus(2, 1), {}, "toy has 1 training images: at least 2"),
        (corpus(), {"resolution": 32}, "16 px and the recipe says resolution=32: give resolution=16"),
        (corpus(side=18), {"resolution": 18}, "returns 16 px for images of 18 px: give resolution=16"),
        (corpus(), {"options": {"unknown": 1}}, "options of method noisy: .*'unknown'"),
        (corpus(), {"batch_size": 3, "accumulation": 3, "host": {"target": "os.system"}}, "outside the allowed"),
        (corpus(), {"host": "smal"}, "must be small, or a class"),
    ],
    ids=["empty", "one image", "another size", "a size no stride divides", "options", "target", "name"],
)
def test_a_run_that_cannot_train_is_refused_before_it_writes(tmp_path, data, changes, words):
    with pytest.raises(ValueError, match=words):
        fit("noisy", recipe(**changes), data, tmp_path / "run")
    assert not (tmp_path / "run" / "settings.json").exists()


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no method 'vqgam': one of vqvae, vqgan"):
        fit("vqgam", recipe(), corpus(), tmp_path / "run")


@pytest.mark.parametrize(
    ("tracker", "mend"), [("wandb", "pip install wandb"), ("tensorboard", r'pip install "tavq-plugin\[train\]"')]
)
def test_a_missing_tracker_is_named_with_its_install_command(tmp_path, monkeypatch, tracker, mend):
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(ImportError, match=f"tracker={tracker} needs its package .*: {mend}, or --set tracker=none"):
        fit("vqgan", recipe(tracker=tracker), corpus(), tmp_path / "run")


def test_the_next_logged_row_says_where_a_balanced_gradient_was_left_out(tmp_path):
    for host, expected in (("Blind", [2, 4, 6]), ("Odd", [0, 0, 0])):  # two taps
        settings = recipe(host={"target": f"helpers.toy_corpus.{host}"}, steps=3)
        fitted = fit("tavq", settings, corpus(), tmp_path / host, allow=["helpers"])
        assert [row["skipped_gradients"] for row in fitted.history] == expected
    summed = fit("tavq-weighted-sum", settings, corpus(), tmp_path / "sum", allow=["helpers"])
    assert "skipped_gradients" not in summed.history[0]
