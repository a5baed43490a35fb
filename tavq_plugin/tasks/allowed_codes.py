"""A logits processor for transformers' `generate`, with which no place gets a code of another level."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tavq_plugin.tasks.tokens import TokenLayout


class AllowedCodes(LogitsProcessor):
    """Sets the logits of all tokens that the next place cannot hold to minus infinity.

    Args:
        layout: Which tokens each place can hold.
        prefix: Number of ids before the first code, such as 1 for a start token. Default: 0, as with `inputs_embeds`,
            where `generate` counts only the ids that it has made.
    """

    def __init__(self, layout: TokenLayout, *, prefix: int = 0) -> None:
        self.prefix, self.length, self.allowed = prefix, layout.length, layout.allowed()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Ids so far, b t, and logits of the next one, b w -> b w; w may exceed the layout's number of tokens.

        Raises ValueError if the ids so far do not reach the first place, or all places have their code.
        """
        place = input_ids.shape[1] - self.prefix
        if not 0 <= place < self.length:
            raise ValueError(
                f"{input_ids.shape[1]} ids with a prefix of {self.prefix} ask for place {place}, and images have "
                f"{self.length} codes: give prefix= the number of ids before the first code, and max_new_tokens="
                f"{self.length}"
            )
        here = self.allowed[place].to(scores.device)
        if scores.shape[1] < len(here):
            raise ValueError(f"{scores.shape[1]} logits for {len(here)} tokens: give the layout of this model's codes")
        kept = torch.nn.functional.pad(here, (0, scores.shape[1] - len(here)), value=False)
        return scores.masked_fill(~kept, float("-inf"))
