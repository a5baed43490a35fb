"""Captioning models without a chat template, of some thousand random weights, saved as a user would."""

from pathlib import Path

import torch
from helpers.tiny_vlm import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    Blip2Config,
    Blip2Processor,
    BlipConfig,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2Processor,
    GitConfig,
    GitProcessor,
    Kosmos2Config,
    Kosmos2Processor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    Pix2StructConfig,
    Pix2StructImageProcessor,
    Pix2StructProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

OTHER_WORDS = ["Describe", "this", "in", "detail:", "describe", "en", "What"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # the ids that BART and Kosmos-2 have
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION |= {"image_size": 32, "patch_size": 16, "projection_dim": 32}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SIZE = {"height": 32, "width": 32}


def save_tiny_captioner(kind: str, folder: Path) -> Path:
    """Write config, weights and processor of a model of the type `kind`; of pix2struct all but the weights."""
    if kind == "pix2struct":
        Pix2StructConfig(architectures=["Pix2StructForConditionalGeneration"]).save_pretrained(folder)
        Pix2StructProcessor(Pix2StructImageProcessor(), _tokenizer()).save_pretrained(folder)
        return folder
    from transformers import AutoModelForImageTextToText

    makers = {"blip": _blip, "blip-2": _blip2, "florence2": _florence2, "git": _git}
    processor, config = {**makers, "kosmos-2": _kosmos2, "paligemma": _paligemma}[kind](_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():  # some families start with weights so small that every image is alike
            torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(single="<s> $A </s>", **more):
    words = [*SPECIAL, "<image>", *dict.fromkeys([*WORDS, *OTHER_WORDS])]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>", "additional_special_tokens": ["<image>"]}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names, **more)


def _clip_images(**more):
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE, **more)


def _blip(tokenizer):
    text = {**TEXT, **IDS, "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "projection_dim": 32}
    config = BlipConfig(text_config={**text, "sep_token_id": 2}, vision_config=VISION)
    return BlipProcessor(BlipImageProcessor(size=SIZE), tokenizer), config


def _blip2(_):
    tokenizer = _tokenizer("<s> $A")  # as OPT's
    language = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}
    language |= {"word_embed_proj_dim": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 256, **IDS}
    former = {**TEXT, "encoder_hidden_size": 32, "vocab_size": len(tokenizer)}
    config = Blip2Config(
        vision_config=VISION, qformer_config=former, text_config=language, num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=4), config


def _florence2(_):
    tokenizer = _tokenizer(extra_special_tokens={"image_token": "<image>"})
    vision = {"depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    vision |= {"patch_prenorm": (False, True), "embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2)}
    vision |= {"window_size": 4, "projection_dim": 32, "max_position_embeddings": 8}
    bart = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=256,
        decoder_start_token_id=2, forced_eos_token_id=None, forced_bos_token_id=None, **IDS,
    )  # fmt: skip
    config = Florence2Config(
        vision_config=vision,
        text_config=bart.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **IDS,
    )
    return Florence2Processor(_clip_images(image_seq_length=17), tokenizer), config


def _git(tokenizer):
    config = GitConfig(vision_config=VISION, vocab_size=len(tokenizer), max_position_embeddings=128, **TEXT, **IDS)
    return GitProcessor(_clip_images(), tokenizer), config


def _kosmos2(tokenizer):
    processor = Kosmos2Processor(_clip_images(), tokenizer, num_patch_index_tokens=4)
    text = {"vocab_size": len(processor.tokenizer) + 64, "embed_dim": 32, "layers": 2, "ffn_dim": 64}
    text |= {"attention_heads": 2, "max_position_embeddings": 256, **IDS}
    return processor, Kosmos2Config(text_config=text, vision_config=VISION, latent_query_num=64)


def _paligemma(tokenizer):
    processor = PaliGemmaProcessor(SiglipImageProcessor(size=SIZE, image_seq_length=4), tokenizer)
    language = {**TEXT, **IDS, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16}
    language |= {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 256}
    config = PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model"}, text_config=language, projection_dim=32,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), hidden_size=32,
    )  # fmt: skip
    return processor, config
