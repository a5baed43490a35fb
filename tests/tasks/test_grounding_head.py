"""The head of grounding: its places, its losses against plain formulas, and its boxes."""

import pytest
import torch
from helpers.task_runs import LAYOUT, PALETTE
from torch.autograd import gradcheck

from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.grounding_head import (
    GroundingHead,
    PlaceBoxes,
    best_boxes,
    box_loss,
    grounding_loss,
    place_centres,
    positive_places,
)
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid

GRIDS = (LevelGrid(4, 4, 5), LevelGrid(2, 2, 3))


def random_boxes(k, seed, dtype=torch.float64):
    corners = torch.rand(k, 2, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed)).sort(1).values
    return corners.flatten(1)


def plain_giou(a, b):
    """1 − (intersection / union − share of the enclosing box that neither covers), for two lists of numbers."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - wide * high
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 1 - (wide * high / union - (hull - union) / hull)


def test_the_loss_of_boxes_is_the_plain_formula_and_has_its_gradient():
    ours, truth = random_boxes(50, 0), random_boxes(50, 1)
    expected = [plain_giou(a, b) for a, b in zip(ours.tolist(), truth.tolist(), strict=True)]
    assert box_loss(ours, truth).tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) > 1.2 and min(expected) < 0.6  # boxes apart, and boxes that overlap
    assert gradcheck(lambda boxes: box_loss(boxes, truth[:5]), ours[:5].requires_grad_())


def test_places_of_several_grids_stand_in_the_order_of_the_tokens():
    centres = place_centres(GRIDS)
    assert centres.shape == (20, 2)
    assert centres[:2].tolist() == [[0.125, 0.125], [0.375, 0.125]] and centres[16].tolist() == [0.25, 0.25]


def test_positive_places_are_near_the_middle_and_inside_and_never_none():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.51, 0.51, 0.6, 0.6], [0.0, 0.0, 0.5, 0.26]])
    positive = positive_places(boxes, GRIDS[:1])
    assert positive[0].view(4, 4).int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert positive[1].nonzero().flatten().tolist() == [10]  # no centre is inside: the nearest stands for it
    assert positive[2].view(4, 4).int().tolist()[0] == [1, 1, 0, 0] and positive[2].sum() == 2
    assert positive_places(boxes, GRIDS).any(1).all()


def test_the_loss_is_least_where_scores_and_boxes_are_right():
    truth = random_boxes(3, 2, torch.float32)
    positive = positive_places(truth, GRIDS)
    right = PlaceBoxes(torch.where(positive, 20.0, -20.0), truth[:, None].expand(3, 20, 4))
    spread = positive.sum(1).log().mean()  # of a softmax that is even over the positive places
    assert grounding_loss(right, truth, GRIDS) == pytest.approx(spread.item(), abs=1e-4)
    wrong = right._replace(scores=-right.scores)
    assert grounding_loss(wrong, truth, GRIDS) > 20


def test_best_boxes_are_clipped_and_do_not_repeat_one_object():
    boxes = torch.tensor([[[-0.1, 0.0, 0.4, 0.4], [0.0, 0.0, 0.41, 0.4], [0.5, 0.5, 1.3, 1.0], [0.9, 0.0, 1.0, 0.1]]])
    (found,) = best_boxes(PlaceBoxes(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), boxes), 2)
    assert found.tolist() == [pytest.approx([0.0, 0.0, 0.4, 0.4]), pytest.approx([0.5, 0.5, 1.0, 1.0])]


def head():
    codes = CodeSequences(torch.zeros(1, 64).long(), LAYOUT, PALETTE, "")
    torch.manual_seed(0)
    settings = ModelSettings(width=16, layers=1, heads=2)
    places = CodeEmbedding(codes, 16)
    return GroundingHead(places, LAYOUT.grids, torch.randn(7, 5), settings, longest=4).eval()


def test_padding_words_and_other_phrases_of_the_batch_change_nothing():
    model, tokens = head(), torch.randint(64, (2, 64), generator=torch.Generator().manual_seed(3))
    together = model(tokens, torch.tensor([[1, 2, 3], [4, -1, -1]]))
    alone = model(tokens[1:], torch.tensor([[4]]))
    torch.testing.assert_close(together.scores[1:], alone.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.boxes[1:], alone.boxes, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone.scores, model(tokens[1:], torch.tensor([[5]])).scores)
    middles = (together.boxes[..., :2] <= model.centres) & (model.centres <= together.boxes[..., 2:])
    assert middles.all()  # each place is inside its own box


@pytest.mark.parametrize("words", [[[-1, -1]], [[1, 2, 3, 4, 5]]])
def test_a_phrase_without_words_or_with_too_many_is_refused(words):
    with pytest.raises(ValueError, match="at least one, and at most 4"):
        head()(torch.zeros(1, 64).long(), torch.tensor(words))
