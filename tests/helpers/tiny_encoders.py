"""Text models of a few thousand random weights with a vocabulary of their own, saved as a user's folder would be."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "a the red blue car dog cat runs sleeps on in sky house two men boat . , long word".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZE |= {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0}
POSITIONS = 24
EYE = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
EYE |= {"intermediate_size": 16}
ENDS = {"bos_token_id": 2, "eos_token_id": 3}
DUAL = {**SIZE, **ENDS, "max_position_embeddings": POSITIONS}

# name → class, its config, and the options of its tokenizer
FAMILIES = {
    "bert": ("BertModel", {**SIZE, "max_position_embeddings": POSITIONS}, {}),
    "roberta": ("RobertaModel", {**SIZE, "max_position_embeddings": POSITIONS}, {}),
    "xlm-roberta": ("XLMRobertaModel", {**SIZE, "max_position_embeddings": POSITIONS}, {}),
    "mpnet": ("MPNetModel", {**SIZE, "pad_token_id": 1, "max_position_embeddings": POSITIONS}, {}),
    "distilbert": (
        "DistilBertModel",
        {"vocab_size": SIZE["vocab_size"], "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        | {"max_position_embeddings": POSITIONS},
        {},
    ),
    "electra": ("ElectraModel", {**SIZE, "embedding_size": 16, "max_position_embeddings": POSITIONS}, {}),
    "albert": ("AlbertModel", {**SIZE, "embedding_size": 16, "max_position_embeddings": POSITIONS}, {}),
    "deberta-v2": ("DebertaV2Model", {**SIZE, "max_position_embeddings": POSITIONS}, {}),
    "modernbert": (
        "ModernBertModel",
        {**SIZE, **ENDS, "max_position_embeddings": POSITIONS, "cls_token_id": 2, "sep_token_id": 3},
        {},
    ),
    "t5": (
        "T5EncoderModel",
        {"vocab_size": SIZE["vocab_size"], "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
        {"model_max_length": POSITIONS},
    ),
    "qwen3": (
        "Qwen3Model",
        {**SIZE, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": POSITIONS},
        {"padding_side": "left"},
    ),
    "clip": ("CLIPModel", {"text_config": DUAL, "vision_config": EYE, "projection_dim": 24}, {}),
    "clip-text": ("CLIPTextModel", DUAL, {}),
    "clip-projected": ("CLIPTextModelWithProjection", {**DUAL, "projection_dim": 24}, {}),
    "metaclip-2": ("MetaClip2Model", {"text_config": DUAL, "vision_config": EYE, "projection_dim": 24}, {}),
    "chinese-clip": ("ChineseCLIPModel", {"text_config": DUAL, "vision_config": EYE, "projection_dim": 24}, {}),
    "siglip": (
        "SiglipModel",
        {"text_config": {**DUAL, "projection_size": 32}, "vision_config": {**EYE, "hidden_size": 32}},
        {"model_input_names": ["input_ids"]},
    ),
    "siglip-text": ("SiglipTextModel", {**DUAL, "projection_size": 32}, {"model_input_names": ["input_ids"]}),
    "siglip2": (
        "Siglip2Model",
        {"text_config": {**DUAL, "projection_size": 32}, "vision_config": {**EYE, "hidden_size": 32}},
        {"padding_side": "left"},
    ),
}


def save_tiny(name: str, folder: Path) -> Path:
    """Write config, weights and tokenizer of one family."""
    kind, config, options = FAMILIES[name]
    model = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(model.config_class(**config)).save_pretrained(folder)
    tokenizer(**options).save_pretrained(folder)
    return folder


def save_tiny_bert(folder: Path) -> Path:
    """Width 32, 24 positions."""
    return save_tiny("bert", folder)


def tokenizer(**options) -> PreTrainedTokenizerFast:
    """One token a word, between [CLS] and [SEP]."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names, **options)
