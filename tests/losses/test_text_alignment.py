"""TextAlignment against a plain loop over images and levels; repeated codes merged exactly."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.generators import draw

import tavq_plugin as tavq
from tavq_plugin.losses import TextAlignment, merge_repeated_codes
from tavq_plugin.ot import solve
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES


def made_codes(b=3, c=4, k=6):
    """Codes of three levels that share a small codebook, so that codes repeat."""
    table = torch.randn(k, c, generator=draw(0))
    levels, latents = [], []
    for side in (8, 4, 2):
        indices = torch.randint(k, (b, side, side), generator=draw(side))
        latent = torch.randn(b, c, side, side, generator=draw(side + 1)).requires_grad_()
        quantized = table[indices].permute(0, 3, 1, 2) + (latent - latent.detach())
        levels.append(tavq.Level(latent, quantized, indices, torch.zeros(())))
        latents.append(latent)
    return tavq.Codes(tuple(levels)), latents


def made_texts(b=3, d=5):
    batch = {}
    for m, name in zip((6, 4, 3), GRANULARITIES, strict=True):
        mask = torch.arange(m)[None] < torch.tensor([m, 2, 0])[:b, None]
        batch[name] = tavq.Units(torch.randn(b, m, d, generator=draw(m)), mask)
    return batch


def test_the_loss_equals_a_plain_loop_over_images_and_levels():
    torch.manual_seed(0)
    align = TextAlignment(4, 5, level_weights=(1.0, 0.5, 2.0), transport=TransportSettings(epsilon=0.1))
    (codes, latents), texts = made_codes(), made_texts()
    loss = align(codes, texts)
    grads = torch.autograd.grad(loss, latents)

    (again, twin), expected = made_codes(), 0.0
    for index, (level, name) in enumerate(zip(again.levels, GRANULARITIES, strict=True)):
        values = []
        for i in range(2):  # the third image has no text
            points = F.normalize(align.project[index](level.quantized[i].flatten(1).T), dim=1)
            units = F.normalize(texts[name].embeddings[i][texts[name].mask[i]], dim=1)
            values.append(solve(points[None], units[None], epsilon=0.1, tolerance=1e-7, max_passes=200).value[0])
        expected = expected + align.level_weights[index] * sum(values) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-5)
        assert (ours[2] == 0).all()


def test_merging_repeated_codes_keeps_value_and_gradient():
    (codes, latents) = made_codes()
    level = codes.levels[0]
    unique = merge_repeated_codes(level.quantized.double(), level.indices)
    points, masses = unique.pad(unique.distinct), unique.masses
    text = torch.randn(3, 5, 4, generator=draw(9)).double()
    options = dict(epsilon=0.5, epsilon_mode="absolute", tolerance=1e-10, max_passes=200)
    merged = solve(points, text, x_mask=masses > 0, x_weight=masses, **options).value
    plain = solve(level.quantized.double().flatten(2).mT, text, **options).value
    torch.testing.assert_close(merged, plain, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad(merged.sum(), latents[0], retain_graph=True)[0]
    theirs = torch.autograd.grad(plain.sum(), latents[0])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert points.shape[1] <= 6
    torch.testing.assert_close(masses.sum(1), torch.ones(3).double())


def test_merged_codes_of_a_single_image():
    codes = torch.tensor([[[[1.0, 2.0], [1.0, 1.0]]]])
    merged = merge_repeated_codes(codes, torch.tensor([[[5, 7], [5, 5]]]))
    assert merged.distinct.flatten().tolist() == [1, 2] and merged.masses.flatten().tolist() == [0.75, 0.25]


def test_codes_that_share_an_index_and_are_unequal_stay_apart():
    """As from a residual quantizer: the first stage's indices, and the sum of all stages' vectors."""
    torch.manual_seed(0)
    align, (codes, _), texts = TextAlignment(4, 5), made_codes(), made_texts()
    level = codes.levels[2]
    summed = level.quantized + 0.3 * torch.randn(level.quantized.shape, generator=draw(3))
    own = torch.arange(level.indices.numel()).view_as(level.indices)
    residual, distinct = (
        (*codes.levels[:2], replace(level, quantized=summed, indices=i)) for i in (level.indices, own)
    )
    torch.testing.assert_close(align(tavq.Codes(residual), texts), align(tavq.Codes(distinct), texts))
    assert len(merge_repeated_codes(summed, level.indices).distinct) == level.indices.numel()
    assert len(merge_repeated_codes(level.quantized, level.indices).distinct) < level.indices.numel()


def test_unequal_codes_of_two_images_with_one_index_stay_apart():
    """One place per image, so that no code repeats within an image."""
    torch.manual_seed(0)
    align, (codes, _) = TextAlignment(4, 5), made_codes()
    one = torch.randn(3, 4, 1, 1, generator=draw(5))
    same, own = (
        tavq.Codes((*codes.levels[:2], replace(codes.levels[2], quantized=one, indices=indices.view(3, 1, 1))))
        for indices in (torch.zeros(3, dtype=torch.long), torch.arange(3))
    )
    torch.testing.assert_close(align(same, made_texts()), align(own, made_texts()))


@pytest.mark.parametrize("distribution", ["all", "gaussian", "gaussian-full", "moments", "moments-full", "subsample"])
@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_every_distribution_reaches_heads_and_encoder(distribution, projection):
    torch.manual_seed(0)
    align = TextAlignment(4, 5, distribution=distribution, projection=projection, samples=4)
    codes, latents = made_codes()
    align(codes, made_texts()).backward()
    assert all(parameter.grad.norm() > 0 for parameter in align.project.parameters() if parameter.ndim == 2)
    assert all(latent.grad.norm() > 0 for latent in latents)


def test_the_plan_of_a_level_covers_every_place():
    torch.manual_seed(0)
    align = TextAlignment(4, 5)
    codes, _ = made_codes()
    plan = align.match(codes.levels[0].quantized, made_texts()["word"], 0).plan()
    assert plan.shape == (3, 64, 6)
    torch.testing.assert_close(plan[:2].sum((1, 2)), torch.ones(2))
    assert (plan[2] == 0).all() and (plan[1, :, 2:] == 0).all()


def test_bad_settings_are_refused():
    for settings, message in (
        ({"text_dim": None}, "give text_dim=, encoder= or store="),
        ({"levels": ("word", "letter", "phrase")}, "letter"),
        ({"level_weights": (1.0,)}, "1 entries for 3 levels"),
        ({"projection": "conv"}, "projection='conv'"),
    ):
        with pytest.raises(ValueError, match=message):
            TextAlignment(4, **({"text_dim": 5} | settings))
    align = TextAlignment(4, 5)
    with pytest.raises(TypeError, match="one text per image"):
        align.units("a dog")
    with pytest.raises(ValueError, match="codes have 2 levels"):
        align(tavq.Codes(made_codes()[0].levels[1:]), made_texts())


@pytest.mark.parametrize(
    "bad",
    [{"epsilon": 0.0}, {"epsilon": float("inf")}, {"epsilon": float("nan")}, {"tolerance": 0.0}, {"max_passes": 0}],
)
def test_bad_transport_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TransportSettings(**bad)


@pytest.mark.parametrize("contrast", [0.0, 0.1])
def test_bad_weights_of_units_do_not_pass(contrast):
    torch.manual_seed(0)
    align, (codes, _), texts = TextAlignment(4, 5, contrast=contrast), made_codes(), made_texts()

    def weighted(value):
        weights = texts["word"].mask.float()
        weights[0, 0] = value
        return align(codes, {**texts, "word": replace(texts["word"], weights=weights)})

    assert weighted(2.0).isfinite()
    assert weighted(float("nan")).isnan()
    with pytest.raises(ValueError, match="negative"):
        weighted(-0.5)
