"""A head that finds the object of a phrase: at each place of the codes a score and a box, as in FCOS.

A transformer reads the codes and the phrase's words together. Each place then says whether it lies at the middle of the
named object, and how far the object reaches from there to the left, top, right and bottom (Tian et al. 2019). A phrase
names one object, so the scores are compared across places by a softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.tasks.grid_convolutions import GridConvolutions
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import LevelGrid

CENTRE_RADIUS = 1.0  # places whose centre is this near to the object's, in steps of the grid per axis, are positive
NO_WORD = -1  # pads phrases that have fewer words
WIDEST_OVERLAP = 0.5  # non-maximum suppression drops boxes that overlap a better one by more


class PlaceBoxes(NamedTuple):
    """What each place says about the object of a phrase."""

    scores: Tensor  # b n, before the softmax
    boxes: Tensor  # b n 4: x0, y0, x1, y1 as shares of the picture; they may reach beyond its edges


def place_centres(grids: Sequence[LevelGrid]) -> Tensor:
    """The centre x, y of each place as shares of the picture, in the order of the tokens; n 2.

    >>> place_centres([LevelGrid(1, 2, 5)])
    tensor([[0.2500, 0.5000],
            [0.7500, 0.5000]])
    """
    parts = []
    for grid in grids:
        ys, xs = ((torch.arange(size) + 0.5) / size for size in (grid.height, grid.width))
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        parts.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(parts)


def place_steps(grids: Sequence[LevelGrid]) -> Tensor:
    """Width and height of each place as shares of the picture; n 2."""
    parts = [torch.tensor([[1 / grid.width, 1 / grid.height]]).expand(grid.height * grid.width, 2) for grid in grids]
    return torch.cat(parts)


def positive_places(boxes: Tensor, grids: Sequence[LevelGrid], *, radius: float = CENTRE_RADIUS) -> Tensor:
    """Which places stand for each object; b 4 -> b n bool.

    These are the places whose centre is inside the box and within `radius` steps of the box's middle; the nearest place
    always is one, because a small box may hold no centre.
    """
    centres, steps = place_centres(grids).to(boxes), place_steps(grids).to(boxes)
    middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    inside = ((centres > boxes[:, None, :2]) & (centres < boxes[:, None, 2:])).all(-1)
    away = (centres - middle).abs() / steps
    nearest = F.one_hot(away.square().sum(-1).argmin(1), len(centres)).bool()
    return (inside & (away <= radius).all(-1)) | nearest


def box_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """Generalized IoU loss of each box, from 0 to 2 (Rezatofighi et al. 2019); k 4, k 4 -> k."""
    from torchvision.ops import generalized_box_iou_loss

    return generalized_box_iou_loss(boxes, truth)


def grounding_loss(found: PlaceBoxes, truth: Tensor, grids: Sequence[LevelGrid]) -> Tensor:
    """Cross-entropy of the scores with the positive places, and the boxes' loss there; b n, b 4 -> scalar."""
    positive = positive_places(truth, grids)
    share = positive / positive.sum(1, keepdim=True)  # the softmax is spread evenly over them
    score = F.cross_entropy(found.scores.float(), share)
    image, place = positive.nonzero(as_tuple=True)
    return score + box_loss(found.boxes[image, place].float(), truth[image]).mean()


def best_boxes(found: PlaceBoxes, at_most: int) -> list[Tensor]:
    """The best boxes of each phrase, clipped to the picture, best first; b × (k 4), k ≥ 1.

    None of them overlaps a better one by more than `WIDEST_OVERLAP`.
    """
    from torchvision.ops import nms

    kept = (
        boxes[nms(boxes, scores, WIDEST_OVERLAP)[:at_most]]
        for scores, boxes in zip(found.scores.float(), found.boxes.float().clamp(0, 1), strict=True)
    )
    return list(kept)


class GroundingHead(nn.Module):
    """Scores and boxes of a phrase at each place; given b …, words b m -> PlaceBoxes b n.

    Args:
        places: Embeds what is given, one vector per place: `CodeEmbedding` for codes, `PixelPatches` for pixels.
        grids: Grids of the places, in their order.
        words: Vectors of all words, v d. They stay as they are; a linear map reads them.
        settings: The transformer.
        longest: Words of a phrase, at most.
    """

    def __init__(
        self,
        places: nn.Module,
        grids: Sequence[LevelGrid],
        words: Tensor,
        settings: ModelSettings,
        *,
        longest: int,
    ) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.places, self.grids, self.longest = places, tuple(grids), longest
        self.neighbours = GridConvolutions(grids, settings.width)
        self.words: Tensor
        self.centres: Tensor
        self.register_buffer("words", words.float(), persistent=False)
        self.register_buffer("centres", place_centres(grids), persistent=False)
        self.read_word = nn.Linear(words.shape[1], settings.width)
        config = BertConfig(
            vocab_size=1,
            hidden_size=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.width,
            max_position_embeddings=len(self.centres) + longest,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.transformer = BertModel(config, add_pooling_layer=False)
        self.score = nn.Linear(settings.width, 1)
        self.reach = nn.Linear(settings.width, 4)
        nn.init.constant_(self.reach.bias, -1.8)  # sigmoid(-1.8) = 0.14: the first boxes are a quarter as wide

    def forward(self, given: Tensor, words: Tensor) -> PlaceBoxes:
        """Scores and boxes; words b m int64, padded with `NO_WORD`. ValueError if a phrase has no word, or too many."""
        known = words != NO_WORD
        if not known.any(1).all() or words.shape[1] > self.longest:
            raise ValueError(
                f"got phrases of {int(known.sum(1).min())} to {words.shape[1]} words: give at least one, and at most "
                f"{self.longest}, which the model was made for"
            )
        places = self.neighbours(self.places(given))
        n = places.shape[1]
        phrase = self.read_word(self.words[words.clamp(min=0)])
        states = self.transformer(
            inputs_embeds=torch.cat([places, phrase], 1),
            attention_mask=torch.cat([known.new_ones(len(places), n), known], 1).long(),
            token_type_ids=torch.cat([words.new_zeros(len(places), n), torch.ones_like(words)], 1),
        ).last_hidden_state[:, :n]
        reach = self.reach(states).float().sigmoid()  # left, top, right, bottom
        corners = torch.cat([self.centres - reach[..., :2], self.centres + reach[..., 2:]], -1)
        return PlaceBoxes(self.score(states)[..., 0], corners)  # not clipped, as a clipped corner has no gradient
