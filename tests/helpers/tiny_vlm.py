"""Vision-language models of some thousand random weights, LLaVA- and Qwen3-VL-type, saved as a user would."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLProcessor,
)

WORDS = "a the red blue car dog cat runs sleeps on in sky house two men boat . , it is Describe image".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[EOS]", "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %} {{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
)
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
TEXT |= {"intermediate_size": 64, "vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 512}
TEXT |= {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2}


def save_tiny_vlm(kind: str, folder: Path) -> Path:
    """Write config, weights, processor and chat template of "llava" or "qwen3_vl"."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names, additional_special_tokens=SPECIAL[3:])
    processor, config = {"llava": _llava, "qwen3_vl": _qwen3_vl}[kind](tokenizer, vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _llava(tokenizer, vocabulary):
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": 32, "patch_size": 16, "model_type": "clip_vision_model", "projection_dim": 32}
    config = LlavaConfig(
        vision_config=vision, text_config={**TEXT, "model_type": "llama"}, image_token_index=vocabulary["<image>"]
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = TEMPLATE.replace("IMAGE", " <image> ")
    return LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    ), config  # fmt: skip


def _qwen3_vl(tokenizer, vocabulary):
    from transformers import AutoImageProcessor, AutoVideoProcessor  # noqa: F401 - registers the classes below
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    vision = {"hidden_size": 32, "depth": 2, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
    vision |= {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [1]}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(patch_size=16, size=size)
    template = TEMPLATE.replace("IMAGE", " <|vision_start|> <|image_pad|> <|vision_end|> ")
    return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(patch_size=16), chat_template=template), config
