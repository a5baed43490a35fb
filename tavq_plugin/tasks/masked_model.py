"""A bidirectional transformer that fills in masked tokens (MaskGIT), its loss, and sampling from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.grid_convolutions import GridConvolutions
from tavq_plugin.tasks.halton import halton_ranks
from tavq_plugin.tasks.sampling import SamplingSettings, draw_tokens, filled_after, guided, gumbel
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.tokens import CodeSequences

BATCH_SIZE = 64  # images that are sampled at once


class Prompt(NamedTuple):
    """What the tokens of b images depend on, as vectors of the transformer."""

    prefix: Tensor  #: b m d, read by every token
    mask: Tensor  #: b m bool, True for a vector, False for padding
    at_places: Tensor | None = None  #: b n d, added to the token of each place

    def kept(self, keep: Tensor) -> Prompt:
        """The same, without the prompts of the images where `keep` (b bool) is False."""
        at_places = None if self.at_places is None else self.at_places * keep[:, None, None]
        return Prompt(self.prefix, self.mask & keep[:, None], at_places)

    def part(self, rows: slice) -> Prompt:
        """The prompts of some images."""
        at_places = None if self.at_places is None else self.at_places[rows]
        return Prompt(self.prefix[rows], self.mask[rows], at_places)


class MaskedModel(nn.Module):
    """Predicts the token of every place from all tokens, some of them masked, and from a prompt.

    Convolutions on the grid come before the blocks, which are ModernBERT's, with full attention. `condition` makes the
    prompts of what a task is given; it is held here so that it is trained and saved with the model. Raises ValueError
    as `CodeEmbedding` does.
    """

    def __init__(self, codes: CodeSequences, settings: ModelSettings, *, condition: nn.Module | None = None) -> None:
        from transformers import ModernBertConfig, ModernBertModel

        super().__init__()
        self.layout, self.condition = codes.layout, condition
        self.forbidden: Tensor
        self.ranks: Tensor
        self.embed = CodeEmbedding(codes, settings.width, kind=settings.embedding)
        self.neighbours = GridConvolutions(codes.layout.grids, settings.width)
        self.start = nn.Parameter(0.02 * torch.randn(settings.width))  # what an image without a prompt has instead
        config = ModernBertConfig(
            vocab_size=1, hidden_size=settings.width, intermediate_size=2 * settings.width,
            num_hidden_layers=settings.layers, num_attention_heads=settings.heads,
            layer_types=["full_attention"] * settings.layers, pad_token_id=None, bos_token_id=None,
            eos_token_id=None, cls_token_id=None, sep_token_id=None,
        )  # fmt: skip
        self.blocks = ModernBertModel(config)
        self.head = nn.Linear(settings.width, codes.layout.vocabulary)
        self.register_buffer("forbidden", ~codes.layout.allowed(), persistent=False)
        self.register_buffer("ranks", halton_ranks(codes.layout), persistent=False)

    def forward(self, tokens: Tensor, prompt: Prompt | None = None) -> Tensor:
        """What the model knows of each place; b n int64 -> b n d. `logits` makes predictions of it."""
        x = self.embed(tokens)
        if prompt is not None and prompt.at_places is not None:
            x = x + prompt.at_places
        x = self.neighbours(x)
        b, n, _ = x.shape
        if prompt is None:
            x = torch.cat([x, self.start.expand(b, 1, -1)], 1)
            return self.blocks(inputs_embeds=x).last_hidden_state[:, :n]
        # the codes come first, so that a place has the same position whatever the length of the prefix
        x = torch.cat([x, self.start.expand(b, 1, -1), prompt.prefix], 1)
        mask = torch.cat([prompt.mask.new_ones(b, n + 1), prompt.mask], 1).long()
        return self.blocks(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, :n]

    def logits(self, known: Tensor, places: Tensor) -> Tensor:
        """Logits of the tokens at some places, -inf for those a place cannot hold; r d and r -> r v float32."""
        return self.head(known).float().masked_fill(self.forbidden[places], -math.inf)


def masked_loss(
    model: MaskedModel,
    tokens: Tensor,
    draw: torch.Generator,
    *,
    prompt: Prompt | None = None,
    drop: float = 0.1,
    label_smoothing: float = 0.0,
    context: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of masked tokens; b n -> scalar.

    The share that is masked is cos(π/2 · u) with u uniform for each image, at least one place. The prompt of an image
    is left out with probability `drop`, which guidance needs. Smoothing spreads over the tokens that a place can hold.
    If `context` is given, its tokens are what the model sees at the other places.
    """
    b, n = tokens.shape
    counts = (torch.cos(torch.rand(b, 1, generator=draw) * math.pi / 2) * n).ceil().clamp(min=1)
    hidden = (torch.rand(b, n, generator=draw).argsort(1).argsort(1) < counts).to(tokens.device)
    keep = (torch.rand(b, generator=draw) >= drop).to(tokens.device)
    seen = (tokens if context is None else context).masked_fill(hidden, model.layout.mask)
    known = model(seen, None if prompt is None else prompt.kept(keep))
    places = hidden.nonzero()[:, 1]
    log_p = model.logits(known[hidden], places).log_softmax(1)
    loss = F.nll_loss(log_p, tokens[hidden])
    if not label_smoothing:
        return loss
    forbidden = model.forbidden[places]
    uniform = -(log_p.masked_fill(forbidden, 0).sum(1) / (~forbidden).sum(1)).mean()
    return (1 - label_smoothing) * loss + label_smoothing * uniform


@torch.no_grad()
def sample(
    model: MaskedModel,
    tokens: Tensor,
    settings: SamplingSettings | None = None,
    *,
    prompt: Prompt | None = None,
) -> Tensor:
    """Fill the places that hold `layout.mask`, and leave all others as they are; b n -> b n, on the CPU.

    The same seed gives the same tokens for the same batch.

    Raises:
        ValueError: A token is none of its place, the prompts are for another number of images, or guidance is asked
            for without a prompt.
    """
    settings = settings or SamplingSettings()
    device = model.start.device
    tokens = tokens.to(device)
    refuse_strange(model, tokens)
    if prompt is None and settings.guidance != 1:
        raise ValueError(f"guidance={settings.guidance} needs a prompt: give one, or guidance=1")
    if prompt is not None and len(prompt.prefix) != len(tokens):
        raise ValueError(f"got prompts for {len(prompt.prefix)} images and tokens of {len(tokens)}")
    generator = torch.Generator(device).manual_seed(settings.seed)
    parts = []
    for start in range(0, len(tokens), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        parts.append(_filled(model, tokens[rows], settings, None if prompt is None else prompt.part(rows), generator))
    return torch.cat(parts).cpu()


def refuse_strange(model: MaskedModel, tokens: Tensor) -> None:
    """Raise ValueError for tokens that their places cannot hold, `mask` excepted."""
    layout = model.layout
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != layout.length:
        raise ValueError(f"got tokens of shape {tuple(tokens.shape)}: give one or more images × {layout.length} places")
    known = tokens != layout.mask
    outside = (tokens < 0) | (tokens > layout.mask)
    of_place = model.forbidden[torch.arange(layout.length, device=tokens.device), tokens.clamp(0, layout.mask - 1)]
    if (outside | (known & of_place)).any():
        raise ValueError(
            f"a token is no code of its place: give codes below {layout.vocabulary} where their level allows them, and "
            f"{layout.mask} where the model shall fill in"
        )


def _filled(
    model: MaskedModel,
    tokens: Tensor,
    settings: SamplingSettings,
    prompt: Prompt | None,
    generator: torch.Generator,
) -> Tensor:
    """One batch, filled step by step."""
    tokens = tokens.clone()
    holes = tokens == model.layout.mask
    counts = holes.sum(1)
    steps = max(1, min(settings.steps, int(counts.max())))
    before = torch.zeros_like(counts)
    for step, after in enumerate(filled_after(counts, steps)):
        chosen = holes
        if settings.order == "halton":
            chosen = _first(-model.ranks.expand_as(tokens).double(), holes, after - before)
        if not chosen.any():
            break
        places = chosen.nonzero()[:, 1]
        logits = _predictions(model, tokens, settings, prompt, chosen, places)
        drawn = draw_tokens(logits, settings, generator)
        if settings.order == "confidence":
            sure = logits.log_softmax(1).gather(1, drawn[:, None])[:, 0]
            noise = settings.order_noise * (1 - (step + 1) / steps) * gumbel(sure.shape, generator)
            scores = torch.zeros(tokens.shape, dtype=torch.double, device=tokens.device)
            scores[chosen] = (sure + noise).double()
            taken = _first(scores, holes, after - before)
            drawn, chosen = drawn[taken[chosen]], taken
        tokens[chosen] = drawn
        holes, before = holes & ~chosen, after
    return tokens


def _first(scores: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """The places with the greatest scores among some, `counts` for each image; b n -> b n bool."""
    ranks = scores.masked_fill(~among, -math.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    return (ranks < counts[:, None]) & among


def _predictions(
    model: MaskedModel,
    tokens: Tensor,
    settings: SamplingSettings,
    prompt: Prompt | None,
    chosen: Tensor,
    places: Tensor,
) -> Tensor:
    """Guided logits at the chosen places; r v."""
    if prompt is None or settings.guidance == 1:
        return model.logits(model(tokens, prompt)[chosen], places)
    without = prompt.kept(torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device))
    apart = model.logits(model(tokens, without)[chosen], places)
    logits = guided(model.logits(model(tokens, prompt)[chosen], places), apart, settings.guidance)
    return logits.masked_fill(model.forbidden[places], -math.inf)  # -inf − -inf is NaN
