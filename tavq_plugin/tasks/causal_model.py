"""A small causal transformer that reads the codes of an image and writes words after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tavq_plugin.side_effects import isolated_random_state
from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.grid_convolutions import GridConvolutions
from tavq_plugin.tasks.pixel_patches import PixelPatches
from tavq_plugin.tasks.task import ModelSettings
from tavq_plugin.tasks.vocabulary import END, PADDING, START, UNKNOWN, padded

NOT_TRAINED = -100  # a target that the loss leaves out
NEVER_WRITTEN = [PADDING, START, UNKNOWN]


def causal_transformer(
    vocabulary: int, settings: ModelSettings, *, longest: int, padding: int | None = None, end: int | None = None
) -> LlamaForCausalLM:
    """A Llama of the given size with new weights, for sequences of at most `longest` tokens."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.width * 8 // 3,  # the gated layer has then as many weights as a plain one of 4 ×
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=longest,
        pad_token_id=padding,
        bos_token_id=None,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config)


class CausalModel(nn.Module):
    """Codes of an image, then words; each word is predicted from all codes and the words before it.

    The codes are read in both directions, by convolutions and one layer of their own, since the places of an image
    have no order; the causal transformer has the remaining layers.

    Args:
        prefix: What embeds the codes, `CodeEmbedding`, or the pixels, `PixelPatches`; anything -> b n d.
        vocabulary: Number of words.
        settings: Sizes.
        longest: The greatest number of places and words together.
    """

    def __init__(
        self, prefix: CodeEmbedding | PixelPatches, vocabulary: int, settings: ModelSettings, *, longest: int
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.read = nn.Sequential(
            GridConvolutions(prefix.grids, settings.width),
            nn.TransformerEncoderLayer(
                settings.width, settings.heads, 4 * settings.width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            ),
        )  # fmt: skip
        causal = ModelSettings(settings.width, max(1, settings.layers - 1), settings.heads, settings.embedding)
        self.language = causal_transformer(vocabulary, causal, longest=longest, padding=PADDING, end=END)

    def forward(self, given: Tensor, words: Tensor, blocks: Tensor | None = None) -> Tensor:
        """What the model expects after each word; codes b n or images, words b t -> logits b t v.

        With `blocks`, b t int64 in rising order, one pass reads several texts about each image: a word sees the codes
        and the words of its own block, as if the block stood alone after the codes.
        """
        prefix = self.read(self.prefix(given))
        inputs = torch.cat([prefix, self.language.get_input_embeddings()(words)], 1)
        if blocks is None:
            hidden = self.language.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        else:
            mask, positions = _blocks_apart(prefix.shape[1], blocks)
            hidden = self.language.model(
                inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state
        return self.language.lm_head(hidden[:, prefix.shape[1] :])

    @torch.no_grad()
    def write(
        self,
        given: Tensor,
        prompts: Sequence[Sequence[int]],
        *,
        at_most: int,
        temperature: float | None = None,
        seed: int = 0,
        use_cache: bool = True,
    ) -> list[list[int]]:
        """The words that follow each prompt, up to `END`, which is left out.

        Args:
            given: Codes b n, or images, one row per prompt.
            prompts: b rows of words.
            at_most: Stop after so many words.
            temperature: Draw words at this temperature. Default: take the likeliest word (greedy).
            seed: Of the draw; random streams are left as they were.
            use_cache: If false, keys and values are computed anew for each word: slower, with the same words.

        Raises:
            ValueError: A prompt is empty, there is not one row per prompt, or temperature is not above 0.
        """
        if len(prompts) != len(given) or not all(prompts):
            raise ValueError(
                f"got {len(prompts)} prompts for {len(given)} images, {sum(not prompt for prompt in prompts)} of them "
                "empty: give one prompt of at least one word per image"
            )
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}; leave it out for the likeliest words")
        words = padded(prompts, left=True).to(given.device)  # on the left, so that every text continues at the end
        prefix = self.read(self.prefix(given))
        seen = torch.cat([words.new_ones(prefix.shape[:2]), words != PADDING], 1).long()
        inputs = torch.cat([prefix, self.language.get_input_embeddings()(words)], 1)
        options = {} if temperature is None else {"do_sample": True, "temperature": temperature, "top_k": 0}
        with isolated_random_state(inputs.device):
            torch.manual_seed(seed)
            written = self.language.generate(
                inputs_embeds=inputs, attention_mask=seen, max_new_tokens=at_most, use_cache=use_cache,
                suppress_tokens=NEVER_WRITTEN, **options,
            )  # fmt: skip
        rows = written.tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]


def likeliest(logits: Tensor) -> Tensor:
    """The words that `write` would take; b t v -> b t int64."""
    return logits.index_fill(2, torch.tensor(NEVER_WRITTEN, device=logits.device), -torch.inf).argmax(2)


def word_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of the words that are trained; b t v, b t -> scalar, nats.

    Targets of `NOT_TRAINED` are left out. The loss is 0, with a gradient, if all are.
    """
    kept = (targets != NOT_TRAINED).sum().clamp(min=1)
    flat = rearrange(logits.float(), "b t v -> (b t) v")
    return F.cross_entropy(flat, targets.flatten(), ignore_index=NOT_TRAINED, reduction="sum") / kept


def _blocks_apart(places: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens each token sees, b 1 (n t) (n t) bool, and its position, b (n t), for texts side by side."""
    b, t = blocks.shape
    order = torch.arange(places + t, device=blocks.device)
    block = torch.cat([blocks.new_full((b, places), -1), blocks], 1)  # the codes are a block that every word sees
    same = block[:, :, None] == block[:, None, :]
    mask = (same | (order < places)) & (order[:, None] >= order)
    first = same.int().argmax(2)  # the first token of the own block
    positions = torch.where(block < 0, order, places + order - first)
    return mask[:, None], positions
