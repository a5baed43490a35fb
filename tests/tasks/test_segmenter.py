"""Intersection over union against sets of pixels, and a segmenter that learns."""

import pytest
import torch

from tavq_plugin.tasks.segmenter import overlap, segmented, segmenter
from tavq_plugin.tasks.task import Workplace
from tavq_plugin.tasks.task_data import TaskData, TaskImages


def pixels_of(labels, number):
    return {tuple(place) for place in (labels == number).nonzero().tolist()}


def test_overlap_is_that_of_sets_of_pixels():
    draw = torch.Generator().manual_seed(0)
    ours, true = (torch.randint(0, 4, (5, 3, 3), generator=draw) for _ in range(2))
    true[true == 3] = 0  # class 3 is only in ours, class 4 in neither
    found = overlap(ours, true, classes=5)
    for mine, theirs, value in zip(ours, true, found.per_image.tolist(), strict=True):
        each = []
        for number in theirs.unique().tolist():
            a, b = pixels_of(mine, number), pixels_of(theirs, number)
            each.append(len(a & b) / len(a | b))
        assert value == pytest.approx(sum(each) / len(each))
    sets = [(pixels_of(ours, number), pixels_of(true, number)) for number in range(4)]
    assert found.of_all == pytest.approx(sum(len(a & b) / len(a | b) for a, b in sets) / 4)
    perfect = overlap(true, true, classes=5)
    assert perfect.per_image.eq(1).all() and perfect.of_all == 1


def test_a_segmenter_learns_bright_from_dark(tmp_path):
    labels = (torch.rand(32, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).repeat_interleave(4, 1)
    labels = labels.repeat_interleave(4, 2).to(torch.uint8)
    images = (200 * labels + 20)[:, None].expand(-1, 3, -1, -1).contiguous()
    split = TaskImages(images, labels=labels)
    data = TaskData("halves", split, split, ("dark", "bright"), "halves")
    net = segmenter(data, Workplace(tmp_path, tmp_path, None), quick=True)
    assert overlap(segmented(net, images), labels, classes=2).of_all > 0.9


def test_images_without_label_maps_are_refused(tmp_path):
    split = TaskImages(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no label maps"):
        segmenter(TaskData("plain", split, split, (), "plain"), Workplace(tmp_path, tmp_path, None), quick=True)
