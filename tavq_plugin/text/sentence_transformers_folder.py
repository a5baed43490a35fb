"""Read from a sentence-transformers folder how its model is used, without that library."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

_POOLING = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}  # name in its config → ours
_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}


@dataclass(frozen=True)
class EncoderFolder:
    """How a model folder says its model is used; the defaults stand for a folder that says nothing."""

    pooling: str | None = None
    max_length: int | None = None
    lower: bool = False  # whether texts are lower-cased first
    folder: str = ""  # subfolder of the transformer
    dense: nn.Module | None = None  # applied after pooling


def read_encoder_folder(place: str, revision: str | None = None, *, transformer_only: bool = False) -> EncoderFolder:
    """How the model of a folder or hub name is used; `transformer_only` ignores the layers after the transformer.

    Raises ValueError if the model needs something that is not supported.
    """
    listed = _json(place, "modules.json", revision)
    modules = listed or [{"type": "Transformer", "path": ""}]
    first = next(module["path"] for module in modules if _kind(module) == "Transformer")
    settings = _json(place, os.path.join(first, "sentence_bert_config.json"), revision) or {}
    limit, lower = settings.get("max_seq_length"), bool(settings.get("do_lower_case"))
    if transformer_only or listed is None:
        return EncoderFolder(None, limit, lower, first)
    prompt = (_json(place, "config_sentence_transformers.json", revision) or {}).get("default_prompt_name")
    unknown = [_kind(m) for m in modules if _kind(m) not in ("Transformer", "Pooling", "Dense", "Normalize")]
    if prompt or unknown:
        what = "a default prompt" if prompt else unknown[0]
        raise ValueError(f"{place} uses {what}, which is not supported: give pooling= to use its transformer alone")
    pooling = [_pooling(place, module["path"], revision) for module in modules if _kind(module) == "Pooling"]
    dense = [layer for m in modules if _kind(m) == "Dense" for layer in _dense(place, m["path"], revision)]
    return EncoderFolder(pooling[0] if pooling else None, limit, lower, first, nn.Sequential(*dense) if dense else None)


def _kind(module: dict[str, Any]) -> str:
    return module["type"].rpartition(".")[2]


def _pooling(place: str, path: str, revision: str | None) -> str:
    config = _json(place, os.path.join(path, "config.json"), revision) or {}
    named = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    named = [_POOLING.get(name, name) for name in named] or [config.get("pooling_mode", "mean")]
    if len(named) > 1 or named[0] not in _POOLING.values():
        raise ValueError(
            f"{place} pools by {' and '.join(named)}: one of {', '.join(sorted(_POOLING.values()))} is supported; give "
            "pooling= to use its transformer alone"
        )
    return named[0]


def _dense(place: str, path: str, revision: str | None) -> list[nn.Module]:
    from safetensors.torch import load_file

    config = _json(place, os.path.join(path, "config.json"), revision)
    activation = config.get("activation_function", "Identity").rpartition(".")[2]
    file = _file(place, os.path.join(path, "model.safetensors"), revision)
    if activation not in _ACTIVATIONS or file is None:
        raise ValueError(
            f"{place}: its dense layer {path} "
            + (f"uses {activation}" if file else "has no model.safetensors")
            + ", which is not supported: give pooling= to use its transformer alone"
        )
    linear = nn.Linear(config["in_features"], config["out_features"], config.get("bias", True))
    linear.load_state_dict({key.removeprefix("linear."): weight for key, weight in load_file(file).items()})
    return [linear, _ACTIVATIONS[activation]()]


def _json(place: str, name: str, revision: str | None) -> Any:
    file = _file(place, name, revision)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _file(place: str, name: str, revision: str | None) -> Path | None:
    """A file of a local folder, or of the hub if it can be reached; None if there is no such file."""
    from transformers.utils.hub import cached_file

    if Path(place).is_dir():
        return Path(place, name) if Path(place, name).is_file() else None
    missing = {f"_raise_exceptions_for_{kind}": False for kind in ("missing_entries", "connection_errors")}
    try:
        found = cached_file(place, name, revision=revision, **missing)
    except OSError:  # no such model: loading its weights will say so
        return None
    return None if found is None else Path(found)
