"""Batches are cut on the training device, and are what they were when the CPU cut them."""

import pytest
import torch
from helpers.toy_corpus import corpus, recipe

from tavq_plugin.pixels import to_float
from tavq_plugin.training import fit
from tavq_plugin.training.image_batches import ImageBatches, on_device
from tavq_plugin.training.sampler import BatchSampler, rows_of_rank

CPU = torch.device("cpu")
SPLIT = {"passes": 2, "ranks": 2, "rank": 1}


def batches(**changes):
    sampler = BatchSampler(8, batch_size=8, seed=3)
    return ImageBatches(corpus().images[:8], sampler, CPU, **{"at_most": 1e9, **changes})


def test_batches_are_those_that_the_cpu_cut_before():
    images, made = corpus().images, batches()
    for number in range(3):
        before = rows_of_rank(BatchSampler(8, batch_size=8, seed=3)(number), **SPLIT)
        parts = made.rows(number, **SPLIT)
        assert all(
            torch.equal(rows, former) and flipped is None for (rows, flipped), former in zip(parts, before, strict=True)
        )
        cut = [made.cut(*part) for part in parts]
        assert all(
            torch.equal(each, to_float(images[former].to(CPU))) for each, former in zip(cut, before, strict=True)
        )


def test_flips_depend_on_the_seed_and_the_step_alone():
    made = batches(flip=True)
    whole = made.rows(5, passes=1, ranks=1, rank=0)[0]
    parts = [part for rank in (0, 1) for part in batches(flip=True).rows(5, passes=1, ranks=2, rank=rank)]
    assert all(torch.equal(whole[i], torch.cat([part[i] for part in parts])) for i in (0, 1))
    flipped = torch.stack([made.rows(number, passes=1, ranks=1, rank=0)[0][1] for number in range(200)])
    assert 0.45 < flipped.float().mean() < 0.55 and not torch.equal(flipped[0], flipped[1])
    rows, mirrored = whole
    plain, cut = batches().cut(rows), made.cut(rows, mirrored)
    expected = [image.flip(2) if turned else image for image, turned in zip(plain, mirrored, strict=True)]
    assert torch.equal(cut, torch.stack(expected)) and not torch.equal(cut, plain)


def test_a_run_with_flips_is_another_and_says_so(tmp_path):
    plain, flipped = (fit("vqgan", recipe(flip=flip), corpus(), tmp_path / str(flip)).history for flip in (False, True))
    assert [row["pixel"] for row in plain] != [row["pixel"] for row in flipped]
    with pytest.raises(ValueError, match="flip=False, and this one has True"):
        fit("vqgan", recipe(flip=True), corpus(), tmp_path / "False")
    fit("vqgan", recipe(images_on_gpu=0.0), corpus(), tmp_path / "False")  # changes nothing about what is learned
    with pytest.raises(ValueError, match="images_on_gpu must be 0 or more"):
        recipe(images_on_gpu=-1.0)


def test_images_stay_where_they_are_if_they_are_too_large():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    meta = torch.device("meta")
    assert on_device(images, meta, at_most=images.numel()).is_meta
    assert on_device(images, meta, at_most=images.numel() - 1) is images
    assert on_device(images, CPU, at_most=0) is images


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("at_most", [0, 1e9], ids=["copied", "kept"])
def test_batches_on_a_gpu_are_the_same(at_most):
    sampler = BatchSampler(8, batch_size=8, seed=3)
    made = ImageBatches(corpus().images[:8], sampler, torch.device("cuda"), at_most=at_most, flip=True)
    assert made.images.is_cuda == bool(at_most)
    for part, expected in zip(made.rows(2, **SPLIT), batches(flip=True).rows(2, **SPLIT), strict=True):
        assert torch.equal(made.cut(*part).cpu(), batches(flip=True).cut(*expected))
