"""No place gets a code of another level, also in transformers' own `generate`."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tavq_plugin.tasks.allowed_codes import AllowedCodes
from tavq_plugin.tasks.tokens import LevelGrid, TokenLayout

LAYOUT = TokenLayout((LevelGrid(1, 2, 5), LevelGrid(2, 2, 3)))


def test_only_allowed_tokens_keep_finite_logits():
    allowed = AllowedCodes(LAYOUT, prefix=1)
    scores = torch.randn(4, LAYOUT.vocabulary + 3)  # three words after the codes
    for place, row in enumerate(LAYOUT.allowed()):
        kept = allowed(torch.zeros(4, 1 + place).long(), scores)
        assert torch.equal(kept.isfinite(), torch.cat([row, torch.zeros(3).bool()]).expand(4, -1))
        assert torch.equal(kept[kept.isfinite()], scores[kept.isfinite()])


def test_what_generate_samples_are_codes():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=LAYOUT.vocabulary + 4, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=None, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    made = model.generate(
        inputs_embeds=torch.randn(16, 3, 16), attention_mask=torch.ones(16, 3), do_sample=True,
        max_new_tokens=LAYOUT.length, logits_processor=[AllowedCodes(LAYOUT)],
    )  # fmt: skip
    assert made.shape == (16, LAYOUT.length)
    assert [len(index) for index in LAYOUT.unflatten(made)] == [16, 16]


def test_a_place_beyond_the_image_and_too_few_logits_are_refused():
    allowed = AllowedCodes(LAYOUT)
    with pytest.raises(ValueError, match="give prefix="):
        allowed(torch.zeros(1, LAYOUT.length).long(), torch.zeros(1, LAYOUT.vocabulary))
    with pytest.raises(ValueError, match="logits for 8 tokens"):
        allowed(torch.zeros(1, 0).long(), torch.zeros(1, 5))
