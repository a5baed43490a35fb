"""LG-VQ: three losses that read text from the final codes: a global contrast, masked words, word relations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.hosts.quantization import with_gradient
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.losses.point_clouds import pooled, text_measure
from tavq_plugin.methods.base import Method, Step, drawn_from
from tavq_plugin.methods.lgvq_network import PLACES, MaskedWordReader, VisualTransformer, code_relations
from tavq_plugin.text.ragged import padded_units

DEFAULTS = {"heads": 1, "layers": 2, "dropout": 0.1, "contextual": False}  # saved with a run, as they make the network


class LGVQ(Method):
    """LG-VQ (arXiv 2405.14206, NeurIPS 2024), after its released code: three losses on the final codes.

    A two-layer transformer with a CLS token turns the quantized map into visual tokens. (a) Global semantic alignment
    is a cross-entropy from each image's CLS to the texts of the batch, on cosines without temperature. (b) In masked
    text prediction, a two-layer decoder reads the visual tokens and names the masked words, with label smoothing .1;
    each word is masked with a probability drawn for the batch from a normal (mean .5, sd .1) cut to [.1, .3].
    (c) Relationship alignment is the squared difference between the cosines of words and the cosines of the codes
    nearest to them, summed over pairs and divided by 30², the release's pairs of places with padding.

    Networks, their initial scales, dropout, losses and weights are the release's. The default weights are those of its
    configurations for CelebA-HQ and TextCaps (for CUB: 1e-3 each).

    Differences from the release:

    - There is no CLIP here. A text's tokens are the store's vectors of its content words, centred, of length √d; its
      global feature is the mean over its sentences; a masked word is named among the distinct words of the training
      texts, as vectors of unit length, and words that are not among them are not asked for. The release reads one
      caption of up to 30 tokens, with its start and end tokens.
    - The release's tokens come from CLIP's text transformer, which read the text unmasked: each token knows the masked
      ones, so the masks leak. Ours do not know each other by default; `contextual=True` imitates the leak.
    - The decoder has no positions, as in the release, whose tokens know their own from CLIP; ours know no order.
    - Texts may have any length: beyond 30 words mask vectors repeat, and relations are divided by the text's own pairs.
    - Images without text are left out.
    - Positions are learnt for the grid of the corpus' images (the release: 16 × 16) and resized for others. Biases of
      the decoder's attention start at 0.
    - The recipe sets the learning rate of these networks (`optimizer.method_rate`); the release has one for all.

    Args:
        global_weight: Weight of (a).
        masked_weight: Weight of (b).
        relation_weight: Weight of (c).
        straight_through: If true, as in the release, the gradient passes straight through to the encoder; if false, it
            goes where the tokenizer's `grad_to` says.
        heads: Attention heads; they must divide the width of the codes and that of the text.
        layers: Layers of each transformer.
        dropout: In the decoder of masked words, 0 or more and below 1.
        contextual: If true, a word's token is the mean of its own vector and of its sentences' mean. Those were encoded
            with the masked words in them, so the masks leak, as in the release.

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
        heads: int = 1,
        layers: int = 2,
        dropout: float = 0.1,
        contextual: bool = False,
    ) -> None:
        super().__init__(tokenizer, corpus, seed=seed)
        self.weights = {"global": global_weight, "masked": masked_weight, "relation": relation_weight}
        for name, value in self.weights.items():
            if not value >= 0:
                raise ValueError(f"{name}_weight must be 0 or more, got {value}")
        text, codes = corpus.store.dim, tokenizer.code_width
        if heads < 1 or text % heads or codes % heads:
            raise ValueError(f"heads must divide the code width {codes} and the text's width {text}, got {heads}")
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be 0 or more and below 1, got {dropout}")
        self.straight_through, self.contextual = straight_through, contextual
        self.register_buffer("vocabulary", training_words(corpus), persistent=False)
        grid = _final_grid(tokenizer, corpus)
        with drawn_from(seed):
            self.look = VisualTransformer(codes, text, grid, layers=layers, heads=heads)
            self.read = MaskedWordReader(text, len(self.vocabulary), layers=layers, heads=heads, dropout=dropout)
            self.relate = code_relations(codes, text)
        self._draw = torch.Generator().manual_seed(seed)

    @classmethod
    def resolved_options(cls, options: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options with all that make the network; ValueError if `saved` is of a release with another network."""
        if saved is not None and not DEFAULTS.keys() <= saved.keys():
            raise ValueError(
                "there is a run of lgvq by an earlier release, whose network was another, so it cannot be trained on "
                "or loaded here: give another --out, or delete the run; tavq evaluate can still measure its host"
            )
        return {**DEFAULTS, **{name: saved[name] for name in DEFAULTS if saved}, **options}

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The three losses, weighted."""
        final, words = step.codes.final, step.texts["word"]
        codes = with_gradient(final.latent, final.quantized, "encoder") if self.straight_through else final.quantized
        with torch.autocast(codes.device.type, enabled=False):
            codes = codes.float() if codes.dtype in (torch.float16, torch.bfloat16) else codes
            visual = self.look(codes)
            global_texts = pooled(*text_measure(step.texts["sentence"], visual.dtype))
            tokens, _ = text_measure(words, visual.dtype)
            seen = in_context(tokens, global_texts) if self.contextual else tokens
            places = F.normalize(visual, dim=-1)  # b (1 + n) d
            related = self.relate(rearrange(codes, "b c h w -> b (h w) c"))
            losses = {
                "global": global_contrast(places[:, 0], global_texts, step.texts["sentence"].mask.any(1)),
                "masked": self.masked_words(visual, tokens, words.mask, seen=seen),
                "relation": relation(related, places[:, 1:].detach(), seen, words.mask),
            }
        return {name: self.weights[name] * loss for name, loss in losses.items()}

    def masked_words(self, visual: Tensor, tokens: Tensor, mask: Tensor, *, seen: Tensor) -> Tensor:
        """Cross-entropy of naming the masked words among the training texts'; b n d, b m d, b m, b m d -> scalar.

        `tokens` are the words to name, and `seen` what the decoder reads of those that are shown.
        """
        hidden = draw_masked(mask.cpu(), self._draw).to(mask.device)
        with drawn_from(int(torch.randint(2**62, (), generator=self._draw))):  # dropout advances no random stream
            scores = self.read(seen * tokens.shape[2] ** 0.5, hidden, mask, visual, self.vocabulary)
        similar, target = (tokens @ self.vocabulary.T).max(2)
        asked = hidden & (similar > 1 - 1e-3)  # words outside the training texts are not targets
        return smoothed_cross_entropy(scores, target, asked)

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
    """Draw the words to mask, each with one probability for the batch, from a cut normal; b m bool -> b m bool.

    Padding does not change the draws.
    """
    low, high = (0.5 * (1 + math.erf((edge - 0.5) / 0.1 / math.sqrt(2))) for edge in (0.1, 0.3))
    uniform = torch.rand((), generator=draw, dtype=torch.float64)
    share = 0.5 + 0.1 * torch.special.ndtri(low + (high - low) * uniform)
    hidden = torch.zeros_like(mask)
    hidden[mask] = torch.rand(int(mask.sum()), generator=draw) < share
    return hidden


def in_context(tokens: Tensor, texts: Tensor) -> Tensor:
    """Each word's vector and its text's, averaged, of unit length; b m d, b d -> b m d."""
    return F.normalize(tokens + texts[:, None], dim=-1)


def smoothed_cross_entropy(scores: Tensor, target: Tensor, asked: Tensor) -> Tensor:
    """Cross-entropy with label smoothing .1 over the asked places; b m u, b m, b m bool -> scalar, 0 without any."""
    each = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none", label_smoothing=0.1)
    weight = asked.flatten().to(each)
    return (each * weight).sum() / (weight.sum() + 5e-6)


def global_contrast(images: Tensor, texts: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy from images to the batch's texts, on cosines; unit vectors b d, b d, has text b -> scalar."""
    logits = (images @ texts.T).masked_fill(~present[None], -1e4)
    each = F.cross_entropy(logits, torch.arange(len(images), device=images.device), reduction="none")
    return (each * present).sum() / present.sum().clamp(min=1)


def relation(codes: Tensor, places: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Squared difference between cosines of words and of the codes nearest to them; b n w, b n d, b m d, b m -> scalar.

    The nearest place has the greatest cosine with the word (places and tokens have unit length); where even that is
    negative, the code counts with its opposite, as in the release. Summed over the pairs of a text's words, divided by
    30² or their number if that is larger, then averaged over the images with words; the text side gets no gradient.
    """
    similar, nearest = (tokens @ places.mT).max(2)  # b m
    chosen = F.normalize(codes.take_along_dim(nearest[..., None], 1), dim=-1) * similar.sign()[..., None]
    pairs = mask[:, :, None] & mask[:, None]
    apart = (chosen @ chosen.mT - (tokens @ tokens.mT).detach()).square() * pairs
    of_image = apart.sum((1, 2)) / mask.sum(1).clamp(min=PLACES).square()
    return of_image.sum() / mask.any(1).sum().clamp(min=1)


def _final_grid(tokenizer: Tokenizer, corpus: Corpus) -> tuple[int, int]:
    """The final level's grid for the corpus' images, from that of the images that `wrap` tried."""
    tried, grid = tokenizer.sizes.image, tokenizer.sizes.grids[-1]
    sides = corpus.images.shape[-2:]
    h, w = (max(1, round(g * side / size)) for g, side, size in zip(grid, sides, tried, strict=True))
    return h, w
