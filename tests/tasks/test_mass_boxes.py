"""Boxes from maps of mass, against answers that are known and against all boxes tried one by one."""

import pytest
import torch

from tavq_plugin.tasks.mass_boxes import RULES, BoxRule, peaks_of


def test_both_rules_find_a_block_of_mass_and_its_peak():
    mass = torch.full((2, 8, 8), 0.01)
    mass[0, 2:5, 1:3] = 1.0
    mass[1, 6:8, 4:8] = 1.0
    mass[1, 7, 5] = 2.0
    for rule in (BoxRule(RULES[0], 0.4), BoxRule(RULES[1], 0.85)):
        assert rule.boxes(mass).tolist() == [[0.125, 0.25, 0.375, 0.625], [0.5, 0.75, 1.0, 1.0]]
    assert peaks_of(mass)[1].tolist() == [5.5 / 8, 7.5 / 8]


def test_only_the_part_with_the_peak_is_boxed():
    mass = torch.zeros(1, 4, 4)
    mass[0, 0, 0], mass[0, 3, 2:] = 0.9, 1.0
    assert BoxRule(RULES[0], 0.5).boxes(mass).tolist() == [[0.5, 0.75, 1.0, 1.0]]


def test_no_smaller_box_holds_the_share():
    mass = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    found = BoxRule(RULES[1], 0.6).boxes(mass)
    for own, box in zip(mass / mass.sum((1, 2), keepdim=True), found, strict=True):
        every = [
            ((bottom - top) * (right - left), own[top:bottom, left:right].sum().item())
            for top in range(4) for bottom in range(top + 1, 5) for left in range(6) for right in range(left + 1, 7)
        ]  # fmt: skip
        smallest = min(area for area, inside in every if inside >= 0.6)
        x0, y0, x1, y1 = (box * torch.tensor([6, 4, 6, 4])).round().int().tolist()
        assert (x1 - x0) * (y1 - y0) == smallest and own[y0:y1, x0:x1].sum() >= 0.6


def test_larger_maps_are_averaged_first():
    mass = torch.zeros(1, 64, 64)
    mass[0, 16:32, 32:64] = 1.0
    assert BoxRule(RULES[1], 0.99).boxes(mass).tolist() == [[0.5, 0.25, 1.0, 0.5]]


def test_a_map_without_mass_is_the_whole_picture_and_nan_is_refused():
    for name in RULES:
        assert BoxRule(name, 0.5).boxes(torch.zeros(1, 4, 4)).tolist() == [[0.0, 0.0, 1.0, 1.0]]
        with pytest.raises(ValueError, match="NaN"):
            BoxRule(name, 0.5).boxes(torch.full((1, 4, 4), torch.nan))


@pytest.mark.parametrize(("rule", "share"), [("largest", 0.5), (RULES[0], 0.0), (RULES[1], 1.0)])
def test_an_unknown_rule_or_share_is_refused(rule, share):
    with pytest.raises(ValueError, match="rule=|share must be"):
        BoxRule(rule, share)
