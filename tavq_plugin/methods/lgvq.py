"""LG-VQ: three losses that read text from the final codes: a global contrast, masked words, word relations."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.quantization import with_gradient
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.point_clouds import pooled, text_measure
from tavq_plugin.methods.base import Method, Step, drawn_from
from tavq_plugin.text.ragged import padded_units


class LGVQ(Method):
    """LG-VQ (arXiv 2405.14206, NeurIPS 2024): its two modules, semantic and relationship alignment, as released.

    From the paper: a two-layer transformer with a CLS token turns the quantized map into visual tokens. (a) Global
    semantic alignment is a cross-entropy from each image's CLS to the texts of the batch, on cosines without
    temperature. (b) In masked text prediction, a two-layer decoder reads the visual tokens and names the masked words,
    with label smoothing .1; the share of masked words is drawn from a normal (mean .5, sd .1) cut to [.1, .3].
    (c) Relationship alignment is the squared difference between the cosines of words and the cosines of the codes
    nearest to them. The default weights are those for CelebA-HQ and TextCaps (for CUB: 1e-3 each).

    Our reading: there is no CLIP here, so a text's tokens are the frozen embeddings of its words, its global feature
    is the mean over its sentences, and a masked word is named among the distinct words of the training texts. Texts may
    have any length, and images without text are left out. Positions are sinusoidal, so any grid works.

    Args:
        global_weight: Weight of (a).
        masked_weight: Weight of (b).
        relation_weight: Weight of (c).
        straight_through: If true, as in the released code, the gradient passes straight through to the encoder; if
            false, it goes where the tokenizer's `grad_to` says.
        width: Width of the two transformers, a multiple of 4 · heads.
        heads: Attention heads of the two transformers.

    Raises:
        ValueError: A setting is out of its range, or the training texts hold no word.
    """

    vocabulary: Tensor  # u d: the distinct words of the training texts

    name = "lgvq"
    weighed_by = ("global_weight", "masked_weight", "relation_weight")
    strengths = (1.0, 10.0, 100.0, 1000.0)  # as released its pull is 40 to 2,000 times smaller than that of tavq

    def __init__(
        self,
        tokenizer: Tokenizer,
        corpus: Corpus,
        *,
        seed: int = 0,
        global_weight: float = 1e-3,
        masked_weight: float = 1e-2,
        relation_weight: float = 1e-4,
        straight_through: bool = True,
        width: int = 128,
        heads: int = 4,
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        self.weights = {"global": global_weight, "masked": masked_weight, "relation": relation_weight}
        for name, value in self.weights.items():
            if not value >= 0:
                raise ValueError(f"{name}_weight must be 0 or more, got {value}")
        if width % (4 * heads):
            raise ValueError(f"width must be a multiple of 4 · heads = {4 * heads}, got {width}")
        self.straight_through = straight_through
        self.register_buffer("vocabulary", training_words(corpus), persistent=False)
        text, codes = corpus.store.dim, tokenizer.code_width
        layer: dict[str, Any] = dict(d_model=width, nhead=heads, dim_feedforward=4 * width, dropout=0.0)
        layer |= dict(activation="gelu", batch_first=True, norm_first=True)
        with drawn_from(seed):
            self.into = nn.Linear(codes, width)
            self.cls = nn.Parameter(0.02 * torch.randn(width))
            encoder = nn.TransformerEncoderLayer(**layer)
            self.look = nn.TransformerEncoder(encoder, 2, nn.LayerNorm(width), enable_nested_tensor=False)
            self.to_text = nn.Linear(width, text)
            self.mask_token = nn.Parameter(0.02 * torch.randn(text))
            self.read = nn.Linear(text, width)
            self.fill = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), 2, nn.LayerNorm(width))
            self.to_word = nn.Linear(width, text)
            self.relate = nn.Sequential(nn.Linear(codes, width), nn.GELU(), nn.LayerNorm(width))
        self._draw = torch.Generator().manual_seed(seed)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The three losses, weighted."""
        final, words = step.codes.final, step.texts["word"]
        codes = with_gradient(final.latent, final.quantized, "encoder") if self.straight_through else final.quantized
        with torch.autocast(codes.device.type, enabled=False):
            codes = codes.float()
            visual = self.visual_tokens(codes)
            global_texts = pooled(*text_measure(step.texts["sentence"], visual.dtype))
            tokens, _ = text_measure(words, visual.dtype)
            places = F.normalize(self.to_text(visual), dim=-1)  # b (1 + n) d
            related = self.relate(rearrange(codes, "b c h w -> b (h w) c"))
            losses = {
                "global": global_contrast(places[:, 0], global_texts, step.texts["sentence"].mask.any(1)),
                "masked": self.masked_words(visual, tokens, words.mask),
                "relation": relation(related, places[:, 1:].detach(), tokens, words.mask),
            }
        return {name: self.weights[name] * loss for name, loss in losses.items()}

    def visual_tokens(self, codes: Tensor) -> Tensor:
        """The transformer's tokens for a quantized map, CLS first; b c h w -> b (1 + n) width."""
        h, w = codes.shape[2:]
        x = self.into(rearrange(codes, "b c h w -> b (h w) c")) + positions(h, w, self.cls.shape[0]).to(codes)
        return self.look(torch.cat([repeat(self.cls, "d -> b 1 d", b=len(codes)), x], 1))

    def masked_words(self, visual: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of naming the masked words among the training texts' words; b n w, b m d, b m -> scalar."""
        hidden = draw_masked(mask.cpu(), self._draw).to(mask.device)
        shown = torch.where(hidden[..., None], self.mask_token, tokens)
        padding = ~mask
        padding[:, 0] &= mask.any(
            1
        )  # a text without words keeps one place, so that attention has something to attend to
        order = positions(1, mask.shape[1], self.cls.shape[0]).to(tokens)
        named = self.to_word(self.fill(self.read(shown) + order, visual, tgt_key_padding_mask=padding))
        similar, target = (tokens[hidden] @ self.vocabulary.T).max(1)
        known = (similar > 1 - 1e-3).to(tokens)  # words outside the training texts are not targets
        each = F.cross_entropy(named[hidden] @ self.vocabulary.T, target, reduction="none", label_smoothing=0.1)
        return (each * known).sum() / known.sum().clamp(min=1) + 0 * named.sum()

    def get_extra_state(self) -> Tensor:
        """State of the random generator that draws the masks."""
        return self._draw.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue drawing from the saved state."""
        self._draw.set_state(state.cpu())


def training_words(corpus: Corpus) -> Tensor:
    """Embeddings of the distinct words of the training texts, unit length; -> u d."""
    store = corpus.store
    ids = store.lists["word"].subset(store.rows(corpus.train_rows)).ids.unique()
    if not len(ids):
        raise ValueError(f"lgvq reads words, but no training text of {corpus.name} holds any: give texts with words")
    words = padded_units(store.table, ids[None], torch.ones_like(ids, dtype=torch.bool)[None], store.mean("word"))
    return F.normalize(words.embeddings[0], dim=-1)


def draw_masked(mask: Tensor, draw: torch.Generator) -> Tensor:
    """Draw the words to mask, at least one per text; their share is from a cut normal; b m bool -> b m bool.

    Padding does not change the draws.
    """
    low, high = (0.5 * (1 + math.erf((edge - 0.5) / 0.1 / math.sqrt(2))) for edge in (0.1, 0.3))
    uniform = torch.rand(len(mask), generator=draw, dtype=torch.float64)
    share = 0.5 + 0.1 * torch.special.ndtri(low + (high - low) * uniform)
    count = (share * mask.sum(1)).round().clamp(min=1)
    noise = torch.full(mask.shape, torch.inf)
    noise[mask] = torch.rand(int(mask.sum()), generator=draw)
    return (noise.argsort(1).argsort(1) < count[:, None]) & mask


def global_contrast(images: Tensor, texts: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy from images to the batch's texts, on cosines; unit vectors b d, b d, has text b -> scalar."""
    logits = (images @ texts.T).masked_fill(~present[None], -1e4)
    each = F.cross_entropy(logits, torch.arange(len(images), device=images.device), reduction="none")
    return (each * present).sum() / present.sum().clamp(min=1)


def relation(codes: Tensor, places: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Squared difference between cosines of words and of the codes nearest to them; b n w, b n d, b m d, b m -> scalar.

    The nearest place has the greatest cosine with the word (places and tokens have unit length). Averaged over the
    pairs of a text's words, then over the images with words; the text side gets no gradient.
    """
    nearest = (tokens @ places.mT).argmax(2)  # b m
    chosen = F.normalize(codes.take_along_dim(nearest[..., None], 1), dim=-1)
    pairs = mask[:, :, None] & mask[:, None]
    apart = (chosen @ chosen.mT - (tokens @ tokens.mT).detach()).square() * pairs
    present = mask.any(1)
    return (apart.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).sum() / present.sum().clamp(min=1)


def positions(h: int, w: int, width: int) -> Tensor:
    """Sinusoidal positions of a grid's rows and columns; -> (h w) width.

    >>> positions(2, 3, 8).shape
    torch.Size([6, 8])
    """
    rates = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    angles = torch.cat([y.flatten()[:, None] * rates, x.flatten()[:, None] * rates], 1)
    return torch.cat([angles.sin(), angles.cos()], 1)
