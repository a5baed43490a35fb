"""Grounding without training: where the transport plan of an aligned run sends the words of a phrase.

The plan of an image and its text tells how much of each place's mass goes to each unit of the text. The units that
belong to a phrase give a map of mass; its peak points at the object, and a rule makes a box of the map. Which level is
read, how the maps of several words are joined, and the rule are chosen on training images. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from tavq_plugin.evaluation.plan_maps import plan_maps
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.code_distribution import CodeDistribution
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.tasks.grounding_scores import box_scores
from tavq_plugin.tasks.mass_boxes import RULES, BoxRule, peaks_of
from tavq_plugin.tasks.phrases import Phrases, words_of
from tavq_plugin.tasks.task import Condition, EncodedRun
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.text.cache import TextCache
from tavq_plugin.text.encoder import TextEncoder

PLAN = "training-free"  # the condition
SHUFFLED = "training-free, shuffled texts"  # its control
CHOICE_IMAGES = 200  # training images that the reading and the rule are chosen on
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BATCH = 64  # images, or phrases
JOINED = ("mean", "product")  # of the maps of a phrase's units: high where any of them is, or where all are


class PlanNotAtHand(Exception):
    """The run cannot ground by its plan; says why."""


class Asked(NamedTuple):
    """A phrase and the text that the image is matched with."""

    phrase: str
    text: str  # the image's own text; with the phrase as one more sentence, if the text has none of its words
    image: int


def plan_conditions(
    run: EncodedRun,
    data: TaskData,
    train: Phrases,
    held_out: Phrases,
    encoder: TextEncoder,
    *,
    choice_images: int = CHOICE_IMAGES,
) -> tuple[dict[str, Condition], dict[str, Any]]:
    """The scores of the plan's boxes and of its control, by condition; and what was chosen on training images.

    In the control, each phrase is looked for with the phrase and the text of another image. `choice_images` training
    images are chosen on.

    Raises PlanNotAtHand with the reason, if the run or the data cannot give a plan.
    """
    align = run.align
    if align is None:
        raise PlanNotAtHand(
            "this run has no heads that match codes with text, because it was trained without alignment"
        )
    if encoder.dim != align.text_dim:
        raise PlanNotAtHand(
            f"the run's heads read texts of width {align.text_dim} and this encoder's are {encoder.dim} wide: use the "
            "encoder that the run was trained with"
        )
    levels = [i for i, granularity in enumerate(align.levels) if granularity != "sentence"]
    if not levels:
        raise PlanNotAtHand("the run aligns whole sentences alone, and a phrase is a part of one")
    if any(cast(CodeDistribution, align.distribution[level]).kind != "all" for level in levels):
        raise PlanNotAtHand("the run matches samples of its codes with text, so its plan has no places")
    if not (data.train.captions and data.held_out.captions):
        raise PlanNotAtHand(
            "the images have no captions, and the plan needs a text in which the phrase is one of several"
        )
    plans = TextPlans(run.tokenizer, align, encoder)
    chosen_on = train.of_images(choice_images)
    if not len(chosen_on):
        raise PlanNotAtHand(f"none of the first {choice_images} training images has a phrase to choose the rule on")
    texts = [longest_text(own) for own in data.train.captions]
    plans.texts.add([text for text in texts[: chosen_on.n_images] if text])  # their mean is subtracted
    asked = plans.asked(chosen_on, texts)
    found = list[tuple[float, int, str, BoxRule]]()
    for level in levels:
        of_units = plans.unit_maps(asked, data.train.images, level)
        for joined in JOINED:
            maps = torch.stack([join_maps(mass, joined) for mass in of_units])
            for rule in (BoxRule(name, share) for name in RULES for share in SHARES):
                overlap = box_scores(list(rule.boxes(maps)[:, None]), chosen_on).values["mean_iou"]
                found.append((overlap, level, joined, rule))
    overlap, level, joined, rule = max(found, key=lambda choice: choice[0])
    asked = plans.asked(held_out, [longest_text(own) for own in data.held_out.captions])
    others = [asked[j]._replace(image=own.image) for own, j in zip(asked, _another_image(asked), strict=True)]
    conditions = {}
    for name, questions in ((PLAN, asked), (SHUFFLED, others)):
        of_units = plans.unit_maps(questions, data.held_out.images, level)
        maps = torch.stack([join_maps(mass, joined) for mass in of_units])
        conditions[name] = box_scores(list(rule.boxes(maps)[:, None]), held_out, peaks=peaks_of(maps))
    chosen = {
        "granularity": align.levels[level],
        "level": level + 1,
        "joined": joined,
        "rule": rule.rule,
        "share": rule.share,
        "training phrases": len(chosen_on),
        "training mean_iou": overlap,
    }
    return conditions, chosen


class TextPlans:
    """Maps of mass for phrases, by an aligned run; the tokenizer and the heads stay as they were."""

    def __init__(self, tokenizer: Tokenizer, align: TextAlignment, encoder: TextEncoder) -> None:
        self.tokenizer, self.align, self.texts = tokenizer, align, TextCache(encoder)

    def asked(self, phrases: Phrases, texts: Sequence[str]) -> list[Asked]:
        """Each phrase with the text that its image is matched with; one text for each image."""
        made = []
        for phrase, image in zip(phrases.texts, phrases.images.tolist(), strict=True):
            text = texts[image]
            if not set(words_of(phrase)) & set(words_of(text)):
                text = f"{text} There is a {phrase}.".strip()
            made.append(Asked(phrase, text, image))
        return made

    def unit_maps(self, asked: Sequence[Asked], images: Tensor, level: int) -> list[Tensor]:
        """For each phrase the mass of its units over the grid of one level; k × (m h w), m may be 0."""
        granularity = self.align.levels[level]
        pairs = list(dict.fromkeys((own.image, own.text) for own in asked))  # one plan serves all phrases of a pair
        plans: dict[tuple[int, str], tuple[Sequence[str], Tensor]] = {}
        with eval_without_trace(self.tokenizer), eval_without_trace(self.align):
            codes = self._codes(sorted({image for image, _ in pairs}), images, level)
            for start in range(0, len(pairs), BATCH):
                batch = pairs[start : start + BATCH]
                texts = [text for _, text in batch]
                quantized = torch.stack([codes[image] for image, _ in batch])
                units = self.texts.batch(texts, quantized.device, learn=False)[granularity]
                maps = plan_maps(self.align, quantized, units, level).cpu()
                plans |= zip(batch, zip(self.texts.units(texts, granularity), maps, strict=True), strict=True)
        made = list[Tensor]()
        for own in asked:
            names, mass = plans[own.image, own.text]
            made.append(mass[phrase_units(own.phrase, names)])
        return made

    def _codes(self, rows: Sequence[int], images: Tensor, level: int) -> dict[int, Tensor]:
        device = next(self.align.parameters()).device
        made: dict[int, Tensor] = {}
        for part in torch.tensor(rows).split(BATCH):
            quantized = self.tokenizer.encode(to_float(images[part]).to(device)).levels[level].quantized
            made |= dict(zip(part.tolist(), quantized, strict=True))
        return made


def longest_text(captions: Sequence[str]) -> str:
    """The caption that says the most; "" without any.

    >>> longest_text(["A red ring.", "A red ring beside a star."])
    'A red ring beside a star.'
    """
    return max((caption.strip() for caption in captions), key=len, default="")


def phrase_units(phrase: str, units: Sequence[str]) -> list[int]:
    """Which units of a text stand for a phrase: those with the largest share of words in common; all words, if single.

    >>> phrase_units("large red star", ["red", "star", "blue"])
    [0, 1]
    >>> phrase_units("large red star", ["red star", "blue star", "picture"])
    [0]
    """
    own = set(words_of(phrase))
    of_units = [set(words_of(unit)) for unit in units]
    shares = [len(own & words) / max(1, len(own | words)) for words in of_units]
    if all(len(words) <= 1 for words in of_units):
        return [i for i, share in enumerate(shares) if share > 0]
    most = max(shares, default=0.0)
    return [i for i, share in enumerate(shares) if share == most > 0]


def join_maps(mass: Tensor, joined: str) -> Tensor:
    """One map of the maps of several units, sum 1; m h w -> h w. Uniform if there is none.

    >>> join_maps(torch.tensor([[[3.0, 1.0]], [[1.0, 3.0]]]), "mean")
    tensor([[0.5000, 0.5000]])
    """
    if not len(mass):
        return torch.full(mass.shape[1:], 1 / (mass.shape[1] * mass.shape[2]))
    own = mass / mass.sum((1, 2), keepdim=True).clamp(min=1e-30)  # each word counts alike
    if joined == "product":
        floor = 1e-3 / (mass.shape[1] * mass.shape[2])  # a word that is nowhere near does not rule a place out
        own = (own + floor).log().mean(0, keepdim=True).exp()
    total = own.mean(0)
    return total / total.sum().clamp(min=1e-30)


def _another_image(asked: Sequence[Asked]) -> Iterator[int]:
    """For each phrase the number of one of another image; its own if there is only one image."""
    n = len(asked)
    for i, one in enumerate(asked):
        others = ((i + n // 2 + step) % n for step in range(n))
        yield next((j for j in others if asked[j].image != one.image), i)
