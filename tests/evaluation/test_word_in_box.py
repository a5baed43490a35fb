"""A word in its box: places against a plain loop, average precision against scikit-learn, chance, and refusals."""

import math

import pytest
import torch

from tavq_plugin.evaluation.probes.ridge import choose_ridges
from tavq_plugin.evaluation.probes.word_in_box import boxed_words, word_in_box, words_at_places

WORDS = ["dog", "cat", "bird"]


def boxed_images(n, *, side=4, codes=12, seed=0, noise=0.8):
    """Code grids in which a boxed word's places have a code of that word more often than not, and the boxes."""
    draw = torch.Generator().manual_seed(seed)
    book = torch.randn(codes, 6, generator=torch.Generator().manual_seed(9))
    indices, boxes = torch.randint(codes, (n, side, side), generator=draw), []
    for i in range(n):
        word = int(torch.randint(3, (1,), generator=draw))
        x, y = (torch.randint(side - 1, (2,), generator=draw) / side).tolist()
        boxes.append([{"phrase": WORDS[word].upper(), "box": [x, y, x + 0.5, y + 0.5]}])
        inside = words_at_places(boxes[-1], WORDS, side, side)[:, word].reshape(side, side)
        own = inside & (torch.rand(side, side, generator=draw) > noise / 2)
        indices[i][own] = word
    return book[indices].permute(0, 3, 1, 2), boxes


def test_places_whose_centre_is_in_a_box_have_its_word():
    boxes = [{"phrase": "cat", "box": [0.1, 0.3, 0.62, 0.95]}, {"phrase": "a grey Cat", "box": [0.8, 0.0, 1.0, 0.2]}]
    boxes += [{"phrase": "cow", "box": [0.0, 0.0, 1.0, 1.0]}]
    found = words_at_places(boxes, WORDS, 5, 4)
    for place in range(20):
        y, x = (place // 4 + 0.5) / 5, (place % 4 + 0.5) / 4
        inside = any(b["box"][0] <= x <= b["box"][2] and b["box"][1] <= y <= b["box"][3] for b in boxes[:2])
        assert found[place].tolist() == [False, inside, False]


def test_the_score_equals_that_of_scikit_learn_with_tied_codes():
    average_precision_score = pytest.importorskip("sklearn.metrics").average_precision_score
    train, train_boxes = boxed_images(60)
    held_out, held_out_boxes = boxed_images(30, seed=1)
    held_out_boxes[4] = []
    result = word_in_box(train, train_boxes, held_out, held_out_boxes, WORDS)
    points = train.permute(0, 2, 3, 1).flatten(0, 2)
    (ridge,) = choose_ridges(points, [torch.cat([words_at_places(own, WORDS, 4, 4) for own in train_boxes])])
    kept = [i for i in range(30) if i != 4]
    scores = ridge.predict(held_out[kept].permute(0, 2, 3, 1).flatten(0, 2)).numpy()
    assert len(set(scores[:, 0].tolist())) <= 12  # one score per code: most places are tied
    present = torch.cat([words_at_places(held_out_boxes[i], WORDS, 4, 4) for i in kept]).numpy()
    expected = [100 * average_precision_score(present[:, k], scores[:, k]) for k in range(3)]
    assert result.map == pytest.approx(sum(expected) / 3)
    assert result.per_image.nanmean().item() == pytest.approx(result.map)
    assert result.per_image.isnan().nonzero().flatten().tolist() == [4]


def test_boxes_lift_the_score_above_chance_and_dealt_boxes_do_not():
    train, train_boxes = boxed_images(200)
    held_out, held_out_boxes = boxed_images(100, seed=1)
    result = word_in_box(train, train_boxes, held_out, held_out_boxes, WORDS)
    mean, spread = result.chance
    assert result.map > mean + 10 * spread and spread > 0
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3)).tolist()
    dealt = word_in_box(train, train_boxes, held_out, [held_out_boxes[i] for i in order], WORDS)
    assert abs(dealt.map - mean) < 4 * spread
    again = word_in_box(train, train_boxes, held_out, held_out_boxes, WORDS)
    assert again.map == result.map and again.chance == result.chance


def test_a_word_of_no_held_out_box_is_left_out_of_the_mean():
    train, train_boxes = boxed_images(60)
    held_out, held_out_boxes = boxed_images(30, seed=1)
    ours, with_more = (
        word_in_box(train, train_boxes, held_out, held_out_boxes, words) for words in (WORDS, [*WORDS, "cow"])
    )
    assert with_more.map == pytest.approx(ours.map, rel=1e-3) and math.isfinite(with_more.chance[0])


def test_words_are_chosen_by_the_images_whose_boxes_have_them():
    boxes = [[{"phrase": "dog"}] * 9, [{"phrase": "cat"}, {"phrase": "ant"}], [{"phrase": "Cat"}, {"phrase": "ant"}]]
    assert boxed_words(boxes, at_least=2) == ["ant", "cat"]
    assert boxed_words(boxes, at_least=1, most=1) == ["ant"]


def test_bad_boxes_are_refused():
    train, train_boxes = boxed_images(20)
    few = [[], [], *[[]] * 17, train_boxes[0]]
    for ours, theirs, words, message in (
        (few, train_boxes, WORDS, "1 of 20 training images have boxes: at least 2"),
        (train_boxes, few, WORDS, "1 of 20 held-out images have boxes"),
        (train_boxes[1:], train_boxes, WORDS, "for 19 lists of boxes"),
        (train_boxes, train_boxes, [], "no word is in enough training boxes"),
        (train_boxes, [[{"phrase": "cow", "box": [0, 0, 1, 1]}]] * 20, WORDS, "in a box of one of the 3 words"),
        (
            train_boxes,
            [[{"phrase": "dog", "box": [0.5, 0, 0.1, 1]}]] * 20,
            WORDS,
            r"box of 'dog' is \[0.5, 0, 0.1, 1\]",
        ),
        (train_boxes, [[{"phrase": "dog", "xywh": [1, 2, 3, 4]}]] * 20, WORDS, "box of 'dog' is None"),
        (train_boxes, [[{"phrase": "dog", "box": [0, 0, math.nan, 1]}]] * 20, WORDS, "box of 'dog'"),
    ):
        with pytest.raises(ValueError, match=message):
            word_in_box(train, ours, train, theirs, words)
