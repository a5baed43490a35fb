"""Captions from a transformers image-text-to-text model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tavq_plugin.preprocessing.caption_answer import CaptionAnswer
from tavq_plugin.preprocessing.captioner_families import family_of


class CaptionerOutline:
    """What is known of a local captioner before its weights are loaded: name, revision, own prompt and settings.

    Raises:
        OSError: The model is not a folder and cannot be downloaded.
        ValueError: The model is not one that describes images, or has no chat template and is of no known family.
    """

    def __init__(
        self, model: str, revision: str | None, max_new_tokens: int, temperature: float, seed: int = 0
    ) -> None:
        from transformers import AutoConfig, AutoProcessor

        try:
            config = AutoConfig.from_pretrained(model, revision=revision)
            self.processor = AutoProcessor.from_pretrained(model, revision=revision)
        except OSError as error:
            raise _missing(model, revision, error) from error
        self.family = family_of(model, config.model_type, self.processor)
        self.prompt = None if self.family is None else self.family.prompt
        self.name, self.revision = model, getattr(config, "_commit_hash", None) or revision
        self.settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}


class LocalCaptioner:
    """Any model that AutoModelForImageTextToText loads and whose processor has a chat template.

    Also the types in `captioner_families`, which have none; they get their own prompt if no other is given.
    Batches are padded on the left, so an image's text does not depend on the lengths of other prompts in its batch.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        revision: Revision on the hub. Default: main.
        max_new_tokens: Longest text, in tokens; a text that reaches it before its end is flagged "cut".
        temperature: Sampling temperature. 0 is greedy; a second attempt then samples at 0.7.
        dtype: A torch dtype by name, or "auto": the checkpoint's own on a GPU, float32 on the CPU.
        device: Default: a GPU if there is one.
        seed: Seed of the sampling; a second attempt uses the next one.

    Raises:
        OSError: The model is not a folder and cannot be downloaded.
        ValueError: The model has no chat template, and is of no known family; no weights are loaded then.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        dtype: str = "auto",
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        outline = CaptionerOutline(model, revision, max_new_tokens, temperature, seed)
        self.name, self.revision, self.settings, self.prompt = model, outline.revision, outline.settings, outline.prompt
        self.processor, self._family = outline.processor, outline.family
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype == "auto" and self.device.type == "cpu":
            dtype = "float32"
        try:
            loaded = AutoModelForImageTextToText.from_pretrained(
                model, revision=revision, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
            )
        except OSError as error:
            raise _missing(model, revision, error) from error
        self.processor.tokenizer.padding_side = "left"
        loaded.to(self.device)  # type: ignore[arg-type]  # transformers' decorator hides the argument
        self.model = loaded.eval().requires_grad_(False)
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self._ends = _end_tokens(self.model, self.processor.tokenizer)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0) -> list[CaptionAnswer]:
        """One text per image, without the prompt and special tokens."""
        if self._family is not None and len(set(prompts)) > 1:  # these processors may pad on the wrong side
            singly = zip(images, prompts, strict=True)
            return [answer for image, prompt in singly for answer in self([image], [prompt], attempt)]
        inputs = self._inputs(images, prompts)
        temperature = self.temperature or (0.7 if attempt else 0.0)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(self.seed + attempt)
            tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **sampling)
        tokens = tokens[:, self._tokens_before(tokens, inputs.get("input_ids")) :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        read = [0] * len(texts) if inputs.get("attention_mask") is None else inputs["attention_mask"].sum(1).tolist()
        return [self._answer(*parts) for parts in zip(texts, tokens, read, strict=True)]

    def _inputs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        if self._family is not None:
            given = self._family.inputs(self.processor, images, prompts[0])
            return {name: self._placed(tensor) for name, tensor in given.items() if name != "labels"}
        messages = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.device, self.model.dtype)

    def _tokens_before(self, tokens: Tensor, prompt: Tensor | None) -> int:
        """How many of the generated tokens come before the text: those of the prompt, or of the decoder's start."""
        config = self.model.config
        if config.is_encoder_decoder or getattr(getattr(config, "text_config", None), "is_encoder_decoder", False):
            return 1
        if prompt is None:
            return 0 if self._family is None else self._family.start_tokens
        length = prompt.shape[1]
        if torch.equal(tokens[:, :length], prompt):
            return length
        without_ends = torch.equal(
            tokens[:, 1 : length - 1], prompt[:, 1 : length - 1]
        )  # BLIP replaces the first token
        return length - 1 if length > 2 and without_ends else 0

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.model.dtype) if tensor.is_floating_point() else tensor.to(self.device)

    def _answer(self, text: str, tokens: Tensor, read: int) -> CaptionAnswer:
        ended = [place for place, token in enumerate(tokens.tolist()) if token in self._ends]
        written = ended[0] + 1 if ended else len(tokens)
        cut = not ended and len(tokens) >= self.max_new_tokens
        return CaptionAnswer(text.strip(), "cut" if cut else None, int(read), written)


def resolved_revision(model: str, revision: str | None) -> str | None:
    """The revision that `LocalCaptioner` would report; no weights are loaded."""
    from transformers import AutoConfig

    try:
        return getattr(AutoConfig.from_pretrained(model, revision=revision), "_commit_hash", None) or revision
    except OSError as error:
        raise _missing(model, revision, error) from error


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text, from all places that models name them in."""
    configs = [model.generation_config, model.config, getattr(model.config, "text_config", None)]
    found = [getattr(config, "eos_token_id", None) for config in configs]
    found += [getattr(tokenizer, "eos_token_id", None)]
    if model.config.model_type in ("blip", "git"):  # BERT's: a text ends with its separator
        found += [getattr(tokenizer, "sep_token_id", None)]
    lists = [ids if isinstance(ids, list | tuple) else [ids] for ids in found]
    return {token for ids in lists for token in ids if token is not None}


def _missing(model: str, revision: str | None, error: OSError) -> OSError:
    return OSError(
        f"captioning model {model!r} (revision {revision or 'main'}) is neither a local folder nor in the "
        f"Hugging Face cache, and could not be downloaded: give --model a folder, or --server an address "
        f"({str(error).splitlines()[0]})"
    )
