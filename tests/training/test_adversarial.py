"""The discriminator: its losses, its weight, the step at which it starts, and that it needs no second pass."""

import pytest
import torch
from helpers.toy_corpus import AVERAGED, corpus, recipe
from torch import nn

from tavq_plugin.training import fit
from tavq_plugin.training.adversarial import Adversary, PatchGAN, adaptive_weight, hinge
from tavq_plugin.training.recipe import AdversarialRecipe


def test_the_patch_gan_returns_one_logit_per_patch():
    judge = PatchGAN(layers=3, width=8)
    logits = judge(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 1, 6, 6)  # of 70 px each, as in Isola et al.
    alone = judge(torch.ones(1, 3, 64, 64))
    batched = judge(torch.cat([torch.ones(1, 3, 64, 64), torch.randn(1, 3, 64, 64)]))
    torch.testing.assert_close(alone[0], batched[0], rtol=1e-4, atol=1e-6)  # the rest of the batch changes nothing


def test_hinge_is_flat_beyond_the_margin():
    real, fake = torch.tensor([0.0, 2.0], requires_grad=True), torch.tensor([0.0, -2.0], requires_grad=True)
    loss = hinge(real, fake)
    assert loss.item() == pytest.approx(0.5 * (0.5 + 0.5))
    loss.backward()
    assert real.grad.tolist() == [-0.25, 0.0] and fake.grad.tolist() == [0.25, 0.0]


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms():
    last = torch.ones(4, requires_grad=True)
    own, generator = (3 * last).sum(), (-0.5 * last).sum()
    weight = adaptive_weight(own, generator, last, lambda gradient: gradient)
    assert weight.item() == pytest.approx(6.0 / (1.0 + 1e-4)) and not weight.requires_grad
    assert adaptive_weight(own, 0 * generator, last, lambda gradient: gradient).item() == pytest.approx(1e4)


def test_the_generators_term_sends_no_gradient_to_the_discriminator():
    judge = PatchGAN(layers=1, width=4)
    layer = nn.Conv2d(3, 3, 1)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    settings = AdversarialRecipe(weight=0.5, adaptive=False)
    adversary = Adversary(settings, judge, judge, torch.optim.Adam(judge.parameters()), lambda gradient: gradient)
    rec = layer(images)
    term, factor = adversary.generator_term(rec, rec.mean(), None)
    assert term.item() == pytest.approx(-0.5 * judge(rec).mean().item()) and factor == 1
    term.backward()
    assert layer.weight.grad.abs().sum() > 0 and all(p.grad is None for p in judge.parameters())
    adversary.discriminator_loss(images, rec).backward()
    assert all(p.grad is not None for p in judge.parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_discriminator_starts_at_its_optimizer_step_for_any_accumulation(tmp_path, accumulation):
    pytest.importorskip("taming")
    settings = recipe(
        steps=4, batch_size=4, accumulation=accumulation, adversarial={"start": 2, "width": 4, "layers": 1}
    )
    fitted = fit("noisy", settings, corpus(), tmp_path / "run")
    assert ["adversarial" in row for row in fitted.history] == [False, False, True, True]
    assert fitted.history[3]["discriminator"] != fitted.history[2]["discriminator"]  # it learned
    assert fitted.history[3]["adaptive"] > 0
    assert fitted.method.calls == 4 * accumulation  # none for the discriminator
    assert fitted.method.updates == 4


@pytest.mark.parametrize(
    ("settings", "built"),
    [({"start": 0}, True), ({"start": 1}, False), ({"weight": 0.0, "start": 0}, False)],
    ids=["from the start", "after the last step", "weight 0"],
)
def test_the_discriminator_is_built_only_if_it_takes_part(settings, built):
    pytest.importorskip("taming")
    accelerate = pytest.importorskip("accelerate")
    from tavq_plugin.training.loop import TrainingLoop

    loop = TrainingLoop(recipe(steps=1, adversarial=settings), corpus(), accelerate.Accelerator(cpu=True))
    loop.close()
    assert (loop.adversary is not None) == built


def test_a_host_without_a_last_layer_is_refused(tmp_path):
    pytest.importorskip("vector_quantize_pytorch")
    settings = recipe(host=AVERAGED, adversarial={"start": 0})
    with pytest.raises(ValueError, match="shows no last layer, .*: give adversarial.adaptive=false"):
        fit("vqgan", settings, corpus(), tmp_path / "run", allow=["helpers"])
