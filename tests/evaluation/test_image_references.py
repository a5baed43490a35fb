"""Image and code metrics against scikit-image, SciPy and scikit-learn."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics.pairwise import polynomial_kernel

from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.codebook import codebook_use
from tavq_plugin.evaluation.metrics.frechet import SUBSETS, frechet_distance, kernel_distance
from tavq_plugin.evaluation.metrics.image import psnr, ssim
from tavq_plugin.pixels import to_float


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n, height, width, seed=0):
    """Smooth images and noisy copies of them, uint8, n 3 h w."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=draw)
    smooth = 255 * torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    noisy = smooth + 20 * torch.randn(smooth.shape, generator=draw)
    return smooth.round().to(torch.uint8), noisy.clamp(0, 255).round().to(torch.uint8)


def test_psnr_equals_that_of_scikit_image():
    images, ours = pictures(4, 24, 17)
    expected = [
        peak_signal_noise_ratio(truth.numpy(), made.numpy(), data_range=255)
        for truth, made in zip(images, ours, strict=True)
    ]
    assert psnr(to_float(ours), to_float(images)).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_perfect_image_counts_as_if_one_sub_pixel_were_off_by_one():
    images, _ = pictures(2, 16, 16)
    one_off = images.clone()
    one_off[:, 1, 3, 5] += torch.where(one_off[:, 1, 3, 5] < 255, 1, -1).to(torch.uint8)
    perfect = psnr(to_float(images), to_float(images))
    assert perfect.isfinite().all()
    assert torch.equal(perfect, psnr(to_float(one_off), to_float(images)))
    assert perfect[0].item() == pytest.approx(10 * np.log10(255**2 * 3 * 16 * 16), abs=1e-4)


@pytest.mark.parametrize("size", [(11, 11), (11, 30), (24, 17), (64, 64)])
def test_ssim_equals_that_of_scikit_image(size):
    images, ours = pictures(3, *size)
    expected = [
        structural_similarity(
            truth.numpy(), made.numpy(), channel_axis=0, data_range=255,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for truth, made in zip(images, ours, strict=True)
    ]  # fmt: skip
    assert ssim(to_float(ours), to_float(images)).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "width"), [(200, 16), (40, 64)], ids=["full rank", "rank-deficient"])
def test_frechet_distance_equals_the_formula_by_scipy(n, width):
    real, ours = random(n, width), random(n, width, seed=1) @ random(width, width, seed=2) / 4 + 0.3
    covariances = [np.cov(side.numpy(), rowvar=False) for side in (real, ours)]
    root = scipy.linalg.sqrtm(covariances[0]).real
    product = scipy.linalg.sqrtm(root @ covariances[1] @ root).real  # like √(C₁C₂), and symmetric
    means = real.mean(0) - ours.mean(0)
    expected = (means @ means).item() + np.trace(covariances[0] + covariances[1] - 2 * product)
    assert frechet_distance(real, ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [9, 50])
def test_kernel_distance_equals_a_plain_mmd_over_its_subsets(n):
    real, ours = random(n, 6), random(n + 3, 6, seed=1) + 0.4
    size, gamma = n // 2, 1 / 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subsets = [[torch.randperm(len(side))[:size] for side in (real, ours)] for _ in range(SUBSETS)]
    values = []
    for mine, theirs in subsets:
        x, y = real[mine].numpy(), ours[theirs].numpy()
        within = [polynomial_kernel(side, degree=3, gamma=gamma, coef0=1) for side in (x, y)]
        pairs = [(kernel.sum() - np.trace(kernel)) / (size * (size - 1)) for kernel in within]
        values.append(sum(pairs) - 2 * polynomial_kernel(x, y, degree=3, gamma=gamma, coef0=1).mean())
    distance = kernel_distance(real, ours)
    assert distance.mean == pytest.approx(np.mean(values), rel=1e-9)
    assert distance.spread == pytest.approx(np.std(values), rel=1e-9)


def test_usage_and_perplexity_equal_counts_and_scipys_entropy():
    indices = torch.randint(0, 30, (6, 4, 4), generator=torch.Generator().manual_seed(0)) ** 2 % 37
    counts = np.bincount(indices.flatten().numpy(), minlength=40)
    use = codebook_use(indices, size=40)
    assert use.usage == pytest.approx(100 * np.count_nonzero(counts) / 40)
    assert use.dead == 40 - np.count_nonzero(counts)
    assert use.perplexity == pytest.approx(np.exp(scipy.stats.entropy(counts)), abs=1e-5)


def test_judges_without_weights_name_every_metric_they_lack():
    images, _ = pictures(3, 16, 16)
    missing = Judges(None, images).judge(images).missing
    assert {"rfid", "kid", "kid_spread", "kd_mobilenet", "kd_mobilenet_spread", "kd_squeezenet_spread"} <= set(missing)
