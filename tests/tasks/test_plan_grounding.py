"""Grounding by a plan: a made-up run whose transport is known, its controls, and what it says when it cannot."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.tasks.phrases import Phrases, unique_phrases
from tavq_plugin.tasks.plan_grounding import (
    PLAN,
    SHUFFLED,
    PlanNotAtHand,
    TextPlans,
    join_maps,
    phrase_units,
    plan_conditions,
)
from tavq_plugin.tasks.task import EncodedRun
from tavq_plugin.tasks.task_data import TaskData, TaskImages
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout
from tavq_plugin.types import Codes, Level

WORDS = ("red", "green", "blue", "wall")  # a place's colour, and what is behind everything
WIDTH = 8  # of texts and codes
GRID = 8


class WordEncoder:
    """One axis per colour; any other string has an axis that no code has."""

    dim, fingerprint = WIDTH, "one axis a word"

    def encode(self, strings, progress=None):
        axes = [WORDS.index(string) if string in WORDS else WIDTH - 1 for string in strings]
        return F.one_hot(torch.tensor(axes), WIDTH).float()


class ColourTokenizer(nn.Module):
    """The code of a place is the axis of its colour, read from the image's red channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, images):
        axes = ((images[:, 0] + 1) * 127.5).round().long()[:, ::2, ::2]
        vectors = self.scale * F.one_hot(axes, WIDTH).permute(0, 3, 1, 2)
        return Codes((Level(vectors, vectors, axes, vectors.new_zeros(())),))


def aligned():
    """A head that is the identity, so that each place's mass goes to the word of its colour."""
    align = TextAlignment(WIDTH, WIDTH, levels=("word",), projection="linear")
    with torch.no_grad():
        align.project[0][0].weight.copy_(torch.eye(WIDTH))
        align.project[0][0].bias.zero_()
    return align


def split_of(n, seed):
    """Images of a wall with a block in each of two corners of their own, and a text that names both."""
    draw = torch.Generator().manual_seed(seed)
    images, captions, boxes = torch.full((n, 3, 2 * GRID, 2 * GRID), 3, dtype=torch.uint8), [], []
    for image in images:
        corners = torch.randperm(4, generator=draw)[:2].tolist()
        colours = torch.randperm(3, generator=draw)[:2].tolist()
        own = []
        for corner, colour in zip(corners, colours, strict=True):
            y, x = (8 * (corner // 2) + 2, 8 * (corner % 2) + 2)
            image[0, y : y + 4, x : x + 6] = colour
            box = [x / 16, y / 16, (x + 6) / 16, (y + 4) / 16]
            own.append({"phrase": f"{WORDS[colour]}", "box": box, "unique": True})
        captions.append((f"A {WORDS[colours[0]]} thing and a {WORDS[colours[1]]} thing stand before a wall.",))
        boxes.append(own)
    return TaskImages(images, captions=captions, boxes=boxes)


def run_with(align):
    layout = TokenLayout((LevelGrid(GRID, GRID, WIDTH),))
    codes = CodeSequences(torch.zeros(1, GRID**2).long(), layout, torch.eye(WIDTH), "made up")
    return EncodedRun("made up", 0, ColourTokenizer(), align, codes, codes)


def grounded(align, *, encoder=None, captions=True):
    data = TaskData("blocks", split_of(12, 0), split_of(10, 1), (), "blocks")
    if not captions:
        data = data._replace(train=TaskImages(data.train.images, boxes=data.train.boxes))
    phrases = [unique_phrases(side) for side in (data.train, data.held_out)]
    return plan_conditions(run_with(align), data, *phrases, encoder or WordEncoder())


def test_a_plan_that_sends_each_colour_to_its_word_finds_every_box():
    conditions, chosen = grounded(aligned())
    found, control = conditions[PLAN].values, conditions[SHUFFLED].values
    assert found == {"acc@.5": 1.0, "mean_iou": pytest.approx(1.0, abs=1e-6), "pointing": 1.0}
    assert control["acc@.5"] < 0.5 and control["pointing"] < 0.8 and control["mean_iou"] < 0.6
    assert (chosen["granularity"], chosen["level"], chosen["training phrases"]) == ("word", 1, 24)
    assert chosen["training mean_iou"] == pytest.approx(1.0)
    assert conditions[PLAN].per_image["acc@.5"].shape == (10,)


def test_a_head_that_knows_nothing_finds_little():
    align = aligned()
    nn.init.zeros_(align.project[0][0].weight)
    nn.init.ones_(align.project[0][0].bias)
    conditions, _ = grounded(align)
    assert conditions[PLAN].values["acc@.5"] < 0.5


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: None, {}, "no heads .* trained without alignment"),
        (lambda: TextAlignment(WIDTH, WIDTH, levels=("sentence",)), {}, "whole sentences alone"),
        (lambda: TextAlignment(WIDTH, WIDTH, distribution="subsample", samples=4), {}, "samples of its codes"),
        (lambda: TextAlignment(WIDTH, WIDTH + 1), {}, "width 9 and this encoder's are 8 wide"),
        (aligned, {"captions": False}, "no captions"),
    ],
)
def test_what_a_run_or_data_cannot_do_is_said(make, options, words):
    with pytest.raises(PlanNotAtHand, match=words):
        grounded(make(), **options)


def test_the_units_of_a_phrase():
    assert phrase_units("the red star", ["star", "Red", "blue", "the"]) == [0, 1, 3]
    assert phrase_units("red star", ["a red star", "red star", "star", "sky"]) == [1]
    assert phrase_units("dog", ["cat sits", "sky"]) == [] == phrase_units("dog", [])


def test_maps_are_joined_where_every_word_is_or_where_any_is():
    maps = torch.zeros(2, 1, 4)
    maps[0, 0, :2], maps[1, 0, 1:3] = 1.0, 4.0
    assert join_maps(maps, "mean").flatten().tolist() == pytest.approx([0.25, 0.5, 0.25, 0.0])
    product = join_maps(maps, "product").flatten()
    assert product[1] > 0.9 and product.sum() == pytest.approx(1.0)
    assert join_maps(maps[:0], "product").flatten().tolist() == [0.25] * 4


def test_texts_without_any_of_its_words_get_the_phrase_as_one_more_sentence():
    phrases = Phrases(["red hat", "green hat"], torch.tensor([0, 0]), torch.zeros(2, 4), 1)
    asked = TextPlans(ColourTokenizer(), aligned(), WordEncoder()).asked(phrases, ["A red wall."])
    assert [own.text for own in asked] == ["A red wall.", "A red wall. There is a green hat."]


def test_the_run_is_left_as_it_was():
    align = aligned().train()
    data = TaskData("blocks", split_of(4, 0), split_of(4, 1), (), "blocks")
    phrases = [unique_phrases(side) for side in (data.train, data.held_out)]
    run = run_with(align)
    plan_conditions(run, data, *phrases, WordEncoder())
    assert align.training and run.tokenizer.training
