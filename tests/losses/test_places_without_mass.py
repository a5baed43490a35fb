"""What has no mass or no direction: masked places, images without codes, empty batches, texts whose vector is 0."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.generators import draw

import tavq_plugin as tavq
from tavq_plugin.losses import TextAlignment
from tavq_plugin.ot import solve
from tavq_plugin.ot.solve import TransportSettings
from tavq_plugin.types import GRANULARITIES

WIDTH, TEXT, SIDE = 4, 5, 4
KINDS = {"equal": 0.0, "unequal": 0.3}


def made_codes(b=3, spread=0.0):
    """Three levels; codes of one index are equal if `spread` is 0."""
    table, levels = torch.randn(3, WIDTH, generator=draw(0)), []
    for i in range(3):
        indices = torch.randint(3, (b, SIDE, SIDE), generator=draw(i + 1))
        vectors = table[indices].movedim(-1, 1)
        vectors = vectors + spread * torch.randn(vectors.shape, generator=draw(i + 5))
        levels.append(tavq.Level(vectors, vectors.clone().requires_grad_(), indices, torch.zeros(())))
    return tavq.Codes(tuple(levels))


def made_texts(b=3, m=3):
    mask = torch.ones(b, m, dtype=torch.bool)
    return {name: tavq.Units(torch.randn(b, m, TEXT, generator=draw(i)), mask) for i, name in enumerate(GRANULARITIES)}


def alignment(**settings):
    torch.manual_seed(0)
    exact = TransportSettings(tolerance=1e-6, **settings.pop("transport", {}))
    return TextAlignment(WIDTH, TEXT, transport=exact, **settings)


def masked(codes, hidden, filler):
    """The codes with index −1 and `filler` at the hidden places (b h w) of every level."""
    levels = []
    for level in codes.levels:
        vectors = level.quantized.detach().masked_fill(hidden[:, None], filler).requires_grad_()
        levels.append(replace(level, quantized=vectors, indices=level.indices.masked_fill(hidden, -1)))
    return tavq.Codes(tuple(levels))


def gradients(align, codes, texts):
    loss = align(codes, texts)
    return loss.detach(), torch.autograd.grad(loss, [level.quantized for level in codes.levels])


@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contrast", [0.0, 0.2])
def test_a_masked_place_has_no_mass(kind, filler, contrast):
    align, codes, texts = alignment(contrast=contrast), made_codes(spread=KINDS[kind]), made_texts()
    hidden = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    hidden[:, 2:] = True  # the lower half, so that what is left is a grid
    loss, found = gradients(align, masked(codes, hidden, filler), texts)
    upper = [
        replace(each, latent=each.latent[:, :, :2], quantized=each.quantized[:, :, :2], indices=each.indices[:, :2])
        for each in codes.levels
    ]
    expected, others = gradients(align, tavq.Codes(tuple(upper)), texts)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(found, others, strict=True):
        assert (ours[:, :, 2:] == 0).all()
        torch.testing.assert_close(ours[:, :, :2], theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_images_have_different_numbers_of_masked_places(kind):
    align, codes, texts = alignment(), made_codes(spread=KINDS[kind]), made_texts()
    hidden = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    hidden[0, 1:], hidden[1] = True, True  # the second image has no place left, the third has all
    loss, found = gradients(align, masked(codes, hidden, torch.nan), texts)
    alone = []
    for image, rows in ((0, 1), (2, SIDE)):
        part = [
            replace(
                each,
                latent=each.latent[image : image + 1, :, :rows],
                quantized=each.quantized[image : image + 1, :, :rows],
                indices=each.indices[image : image + 1, :rows],
            )
            for each in codes.levels
        ]
        own = {
            name: tavq.Units(units.embeddings[image : image + 1], units.mask[image : image + 1])
            for name, units in texts.items()
        }
        alone.append(align(tavq.Codes(tuple(part)), own).detach())
    torch.testing.assert_close(3 * loss, alone[0] + alone[1])
    assert all((part[1] == 0).all() and (part[2] != 0).any() for part in found)


def test_a_batch_of_masked_places_alone_is_zero():
    align, codes = alignment(contrast=0.1), made_codes()
    loss, found = gradients(align, masked(codes, torch.ones(3, SIDE, SIDE, dtype=torch.bool), torch.nan), made_texts())
    assert loss.isfinite() and all((part == 0).all() for part in found)


def test_bad_indices_are_refused():
    codes = made_codes()
    codes.levels[1].indices[0, 0, 0] = -2
    with pytest.raises(ValueError, match="indices hold -2: give 0 or more, or −1 for a masked place"):
        alignment()(codes, made_texts())
    codes.levels[1].indices[0, 0, 0] = -1
    with pytest.raises(ValueError, match="masked place.*distribution='subsample'.*give distribution=\"all\""):
        alignment(distribution="subsample", samples=4)(codes, made_texts())


@pytest.mark.parametrize("distribution", ["all", "gaussian", "moments-full", "subsample"])
@pytest.mark.parametrize("contrast_on", ["pooled", "transport"])
def test_an_empty_batch_has_loss_zero_and_empty_gradients(distribution, contrast_on):
    align = alignment(contrast=0.1, contrast_on=contrast_on, distribution=distribution, samples=4)
    codes = made_codes(b=0)
    loss, found = gradients(align, codes, made_texts(b=0))
    assert loss == 0 and all(part.shape == (0, WIDTH, SIDE, SIDE) for part in found)
    for name in ("units", "images_without_text", "transport_cost", "converged", "marginal_error", "effective_rank"):
        assert (align.last[name] == 0).all() and align.last[name].shape == (3,), name
    assert align.last["own_minus_other"].isnan().all()  # as where fewer than two images have a text
    points = SIDE**2 if distribution == "all" else 4
    assert align.match(codes.levels[0].quantized, made_texts(b=0)["word"], 0).plan().shape == (0, points, 3)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
def test_a_text_vector_of_zero_has_the_cost_of_a_zero_vector(mode, schedule):
    options = {"epsilon": 0.1, "epsilon_mode": mode, "schedule": schedule}
    align, codes, texts = alignment(transport=options), made_codes(), made_texts()
    for units in texts.values():
        units.embeddings[0, 1] = 0.0
        units.embeddings[2] = 0.0
    loss, found = gradients(align, codes, texts)
    expected, leaves = 0.0, [level.quantized for level in codes.levels]
    for index, name in enumerate(GRANULARITIES):
        points = F.normalize(align.project[index](leaves[index].flatten(2).mT), dim=2)
        units = F.normalize(texts[name].embeddings, dim=2)
        expected = expected + solve(points, units, tolerance=1e-6, **options).value.mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_cost_of_an_image_with_a_zero_text_alone_is_one():
    align, codes = alignment(), made_codes()
    texts = {name: replace(units, embeddings=0 * units.embeddings) for name, units in made_texts().items()}
    align(codes, texts)
    torch.testing.assert_close(align.last["transport_cost"], torch.ones(3))
