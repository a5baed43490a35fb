"""Differences and intervals: against SciPy where it has the case, against a plain loop, and by simulation."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tavq_plugin.evaluation.metrics.statistics import difference, holm, intervals, mean_interval

RATIOS = (0, 0.5, 1, 2, 5, 10, 20)  # seed sd / (image sd / √n): noise of the mean from seeds and from images
IMAGES, COMPARISONS = 30, 4000  # the Monte-Carlo error at 5 % is .35 %


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simulated(seeds, ratio, rest, seed):
    """Differences without a true effect; k s n."""
    by_seed, by_image = random(COMPARISONS, seeds, 1, seed=seed), random(COMPARISONS, 1, IMAGES, seed=seed + 1)
    noise = rest * random(COMPARISONS, seeds, IMAGES, seed=seed + 2)
    return ratio / IMAGES**0.5 * by_seed + by_image + noise


@pytest.mark.parametrize("rest", [0, 1, 4])
@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_no_difference_is_found_in_at_most_7_percent_at_any_ratio_of_seed_to_image_noise(seeds, rest):
    for ratio in RATIOS:
        found = intervals(simulated(seeds, ratio, rest, seed=100 * seeds + 7 * rest))
        rate = ((found.low > 0) | (found.high < 0)).mean()
        assert rate <= 0.07, f"{seeds} seeds, ratio {ratio}, rest {rest}: {rate:.3f}"


@pytest.mark.parametrize("rest", [0, 1])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("ratio", [0, 1, 5])
def test_a_difference_of_the_detectable_size_is_found_in_80_percent(seeds, ratio, rest):
    tables = simulated(seeds, ratio, rest, seed=10)
    stated = [difference(table, torch.zeros_like(table)).detectable for table in tables[:300]]
    effect = np.sqrt(np.mean(np.square(stated)))  # the squared standard error is unbiased
    power = (intervals(tables + effect).low > 0).mean()
    assert 0.74 <= power <= 0.87, f"{seeds} seeds, ratio {ratio}, rest {rest}: {power:.3f}"


def test_p_and_the_interval_agree_and_many_tables_at_once_are_as_one():
    tables = simulated(3, 2, 1, seed=5)[:50] + 0.5
    found = intervals(tables)
    for k, table in enumerate(tables):
        one = difference(table, torch.zeros_like(table))
        assert (one.mean, one.low, one.high) == pytest.approx((found.mean[k], found.low[k], found.high[k]))
        assert (one.p < 0.05) == (one.low > 0 or one.high < 0)
        of_seeds, of_images = _parts(table)
        reached = stats.t.ppf(one.p / 2, 2) ** 2 * of_seeds + stats.t.ppf(one.p / 2, IMAGES - 1) ** 2 * of_images
        assert reached == pytest.approx(one.mean**2, rel=1e-6)
        assert one.high - one.mean == pytest.approx(stats.t.ppf(0.975, one.df) * _standard_error(table), rel=1e-6)


def _standard_error(table):
    return math.sqrt(sum(_parts(table)))


def _parts(table):
    """The seeds' and the images' part of the variance of the mean, by the two-way table's sums of squares."""
    s, n = table.shape
    mean = table.mean()
    of_seeds = n * sum((row.mean() - mean) ** 2 for row in table) / (s - 1)
    of_images = s * sum((column.mean() - mean) ** 2 for column in table.T) / (n - 1)
    rest = sum((table[i, j] - table[i].mean() - table[:, j].mean() + mean) ** 2 for i in range(s) for j in range(n))
    return of_seeds.item() / (s * n), max(0.0, of_images.item() - rest.item() / ((s - 1) * (n - 1))) / (s * n)


def test_values_per_seed_are_tested_by_the_paired_t_test():
    first, second = random(4), random(4, seed=1)
    expected = stats.ttest_rel(first.numpy(), second.numpy())
    shown = difference(first, second)
    bounds = expected.confidence_interval()
    assert shown.p == pytest.approx(expected.pvalue) and shown.df == pytest.approx(3) and shown.over == "seeds"
    assert (shown.low, shown.high) == pytest.approx((bounds.low, bounds.high))
    one_image = difference(first[:, None], second[:, None])
    assert one_image == shown


def test_without_noise_of_images_it_is_the_paired_t_test_over_seeds():
    first, second = random(4, 1).expand(4, 9), random(4, 1, seed=1).expand(4, 9)
    expected = stats.ttest_rel(first[:, 0].numpy(), second[:, 0].numpy())
    shown = difference(first, second)
    assert shown.p == pytest.approx(expected.pvalue) and shown.df == pytest.approx(3)
    assert shown.over == "seeds and images"


def test_without_noise_of_seeds_it_is_the_paired_t_test_over_images():
    first, second = random(1, 40).expand(3, 40), random(1, 40, seed=1).expand(3, 40)
    expected = stats.ttest_rel(first[0].numpy(), second[0].numpy())
    assert difference(first, second).p == pytest.approx(expected.pvalue, rel=1e-6)


def test_one_seed_has_an_interval_over_images_and_no_p():
    first, second = random(1, 40), random(1, 40, seed=1)
    bounds = stats.ttest_rel(first[0].numpy(), second[0].numpy()).confidence_interval()
    shown = difference(first, second)
    assert (shown.low, shown.high) == pytest.approx((bounds.low, bounds.high))
    assert shown.p is None and shown.over == "images" and shown.df == pytest.approx(39) and shown.detectable > 0


def test_two_seeds_have_an_interval_and_a_detectable_difference_but_no_p():
    for shape, over in (((2, 40), "seeds and images"), ((2,), "seeds")):
        shown = difference(random(*shape), random(*shape, seed=1))
        assert shown.p is None and shown.low < shown.mean < shown.high and shown.over == over
        assert shown.detectable > shown.high - shown.mean  # 80 % power asks for more than the half-width


def test_the_detectable_difference_has_80_percent_power_by_the_noncentral_t():
    values = random(5)
    shown = difference(values, torch.zeros(5))
    error = (values.std() / math.sqrt(5)).item()
    assert stats.nct.sf(stats.t.ppf(0.975, 4), 4, shown.detectable / error) == pytest.approx(0.8, abs=1e-4)


def test_a_single_value_has_no_interval():
    for shape in ((1,), (1, 1)):
        assert difference(torch.ones(shape), torch.zeros(shape)) == (1, None, None, None, None, None, None)
        assert mean_interval(torch.ones(shape)) == (1, None, None, None)


def test_values_that_do_not_vary():
    base = random(3, 20)
    nothing = difference(base, base)
    assert (nothing.mean, nothing.low, nothing.high, nothing.p, nothing.detectable) == (0, 0, 0, 1, 0)
    constant = difference(base + 0.5, base)  # not exact: the differences vary by rounding
    assert constant.mean == constant.low == constant.high == pytest.approx(0.5) and constant.p == 0
    counts = difference(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([4.0, 5.0, 6.0]))
    assert counts.mean == 1 and counts.p is None  # equal by accident, as counts often are
    assert difference(base[:2], base[:2]).p is None
    assert difference(torch.zeros(3, 4), torch.zeros(3, 4)).p == 1


def test_a_difference_on_which_seeds_disagree_is_not_significant():
    values = torch.tensor([1.0, 1.0, -0.5])[:, None] + 0.01 * random(3, 300)
    assert difference(values, torch.zeros(3, 300)).p > 0.05
    assert difference(values.abs(), torch.zeros(3, 300)).p < 0.05


def test_a_very_clear_difference_has_a_small_p():
    assert 0 < difference(random(5, 400) + 1e5, random(5, 400, seed=1)).p < 1e-15
    assert difference(random(3, 400), random(3, 400) + 1e-3).p < 1e-6


def test_images_without_a_value_are_left_out_for_both_methods():
    first = torch.tensor([[1.0, math.nan, 3.0, math.inf]])
    assert difference(first, torch.tensor([[0.0, 5.0, 0.0, 1.0]])).mean == 2
    assert mean_interval(first).mean == 2
    with pytest.raises(ValueError, match="no image has a finite value"):
        difference(first * math.nan, first)


def test_unlike_seeds_and_unknown_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(3, 4\): a paired difference needs the same seeds and images"):
        difference(random(2, 4), random(3, 4))
    with pytest.raises(ValueError, match="give seeds × images"):
        difference(random(2, 3, 4), random(2, 3, 4))
    with pytest.raises(ValueError, match="give seeds × images"):
        mean_interval(torch.zeros(0))
    with pytest.raises(ValueError, match="must be finite"):
        difference(torch.tensor([1.0, math.nan]), torch.zeros(2))


def test_the_interval_of_a_mean_is_students():
    values = random(4)
    low, high = stats.t.interval(0.95, 3, values.mean().item(), stats.sem(values.numpy()))
    assert mean_interval(values)[1:] == (pytest.approx(low), pytest.approx(high), "seeds")
    values = random(1, 50)
    low, high = stats.t.interval(0.95, 49, values.mean().item(), stats.sem(values[0].numpy()))
    assert mean_interval(values)[1:] == (pytest.approx(low), pytest.approx(high), "images")
    assert mean_interval(random(3, 50)).over == "seeds and images"


def test_holm_is_the_plain_loop():
    draw = np.random.default_rng(0)
    for n in (1, 2, 7):
        p = dict(zip("abcdefg", draw.uniform(0, 0.3, n).tolist(), strict=False))
        expected, greatest = {}, 0.0
        for i, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
            greatest = max(greatest, value * (n - i))
            expected[name] = min(1.0, greatest)
        assert holm(p) == pytest.approx(expected)
    assert holm({}) == {} and holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": math.nan})
