"""Captioning models whose processors have no chat template: what each is asked, and how its inputs are made.

They were trained with prompts of their own; another prompt can be given, but a free instruction is mostly ignored.
Seen with transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image


class CaptionerFamily(NamedTuple):
    """How one type of model is asked."""

    prompt: str  # its own, for a long text; "" asks without words
    inputs: Callable[[Any, Sequence[Image.Image], str], Mapping[str, Any]]  # processor, images, prompt → tensors
    start_tokens: int = 0  # before the text, if there are no words


def _with_prompt(processor: Any, images: Sequence[Image.Image], prompt: str) -> Mapping[str, Any]:
    return processor(images=list(images), text=[prompt] * len(images), return_tensors="pt", padding=True)


def _prompt_or_none(processor: Any, images: Sequence[Image.Image], prompt: str) -> Mapping[str, Any]:
    if prompt:
        return _with_prompt(processor, images, prompt)
    return processor(images=list(images), return_tensors="pt")


def _paligemma(processor: Any, images: Sequence[Image.Image], prompt: str) -> Mapping[str, Any]:
    return _with_prompt(processor, images, f"<image>{prompt}")


def _git(processor: Any, images: Sequence[Image.Image], prompt: str) -> Mapping[str, Any]:
    """GIT continues a text, so the prompt has no end token."""
    inputs = processor(images=list(images), return_tensors="pt")
    if prompt:
        words = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[processor.tokenizer.cls_token_id, *words]]).repeat(len(images), 1)
        inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs


FAMILIES: dict[str, CaptionerFamily] = {  # by `model_type` of the config
    "blip": CaptionerFamily("", _prompt_or_none, start_tokens=1),
    "blip-2": CaptionerFamily("", _with_prompt),
    "florence2": CaptionerFamily("<MORE_DETAILED_CAPTION>", _with_prompt),
    "git": CaptionerFamily("", _git, start_tokens=1),
    "kosmos-2": CaptionerFamily("Describe this image in detail:", _with_prompt),
    "paligemma": CaptionerFamily("describe en", _paligemma),
}


def family_of(model: str, model_type: str, processor: Any) -> CaptionerFamily | None:
    """The family of a model without a chat template; None for one with such a template.

    Raises ValueError if the model has no chat template and is of no known family.
    """
    if getattr(processor, "chat_template", None):
        return None
    if model_type not in FAMILIES:
        raise ValueError(
            f"{model} (type {model_type!r}) has no chat template, and is none of {', '.join(FAMILIES)}: give a model "
            "that takes chat messages with images, or one of these types, or run it on a server and give --server"
        )
    return FAMILIES[model_type]
