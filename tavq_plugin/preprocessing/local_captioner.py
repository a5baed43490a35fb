"""Captions from a transformers image-text-to-text model on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image


class LocalCaptioner:
    """Any model that AutoModelForImageTextToText loads and whose processor has a chat template.

    Batches are padded on the left, so an image's text does not depend on the lengths of other prompts in its batch.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        revision: Revision on the hub. Default: main.
        max_new_tokens: Longest text, in tokens.
        temperature: Sampling temperature. 0 is greedy; a second attempt then samples at 0.7.
        dtype: A torch dtype by name, or "auto": the checkpoint's own on a GPU, float32 on the CPU.
        device: Default: a GPU if there is one.
        seed: Seed of the sampling; a second attempt uses the next one.

    Raises:
        OSError: The model is not a folder and cannot be downloaded.
        ValueError: The model has no chat template.
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
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype == "auto" and self.device.type == "cpu":
            dtype = "float32"
        try:
            self.processor = AutoProcessor.from_pretrained(model, revision=revision)
            loaded = AutoModelForImageTextToText.from_pretrained(
                model, revision=revision, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
            )
        except OSError as error:
            raise _missing(model, revision, error) from error
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(f"{model} has no chat template: give a model that takes chat messages with images")
        self.processor.tokenizer.padding_side = "left"
        loaded.to(self.device)  # type: ignore[arg-type]  # transformers' decorator hides the argument
        self.model = loaded.eval().requires_grad_(False)
        self.name, self.revision = model, getattr(loaded.config, "_commit_hash", None) or revision
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str], attempt: int = 0) -> list[str]:
        """One text per image, without the prompt and special tokens."""
        messages = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image, prompt in zip(images, prompts, strict=True)
        ]
        inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.device, self.model.dtype)
        temperature = self.temperature or (0.7 if attempt else 0.0)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(self.seed + attempt)
            tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **sampling)
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


def resolved_revision(model: str, revision: str | None) -> str | None:
    """The revision that `LocalCaptioner` would report; no weights are loaded."""
    from transformers import AutoConfig

    try:
        return getattr(AutoConfig.from_pretrained(model, revision=revision), "_commit_hash", None) or revision
    except OSError as error:
        raise _missing(model, revision, error) from error


def _missing(model: str, revision: str | None, error: OSError) -> OSError:
    return OSError(
        f"captioning model {model!r} (revision {revision or 'main'}) is neither a local folder nor in the "
        f"Hugging Face cache, and could not be downloaded: give --model a folder, or --server an address "
        f"({str(error).splitlines()[0]})"
    )
