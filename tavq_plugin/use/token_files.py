"""Files of tokens: ids, the indices of each level, and what the indices stand for; safetensors or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tavq_plugin.io.atomic import save_tensors, whole_file

FORMATS = {"safetensors": ".safetensors", "parquet": ".parquet"}
KIND, TOKENS_VERSION = "tavq-plugin tokens", 1
ABOUT = "tavq"  # key of the JSON that says what the indices stand for


class TokenFile(NamedTuple):
    """The tokens of n images."""

    ids: list[str]
    indices: dict[int, Tensor]  # level, from 1 → n h w int64, or the host's own shape for its own level
    about: dict[str, Any]  # fingerprint, run, resolution, codes of each level, and the counts of the file


def write_tokens(path: Path, ids: Sequence[str], indices: Mapping[int, Tensor], about: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all; its format is that of its ending."""
    shapes = {str(level): list(tensor.shape[1:]) for level, tensor in indices.items()}
    content = {"kind": KIND, "version": TOKENS_VERSION, **about, "grids": shapes}
    if path.suffix == FORMATS["safetensors"]:
        tensors = {f"level_{level}": tensor.int() for level, tensor in indices.items()}
        save_tensors(tensors, path, {ABOUT: json.dumps(content), "ids": json.dumps(list(ids))})
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"id": pa.array(list(ids), pa.string())}
    for level, tensor in indices.items():
        flat = pa.array(tensor.int().flatten().numpy())
        columns[f"level_{level}"] = pa.FixedSizeListArray.from_arrays(flat, tensor[0].numel())
    table = pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(content)})
    with whole_file(path) as partial:
        pq.write_table(table, partial)


def read_tokens_file(path: Path) -> TokenFile:
    """What `write_tokens` wrote. ValueError for any other file, a damaged one, or one of a newer release."""
    mend = "give a folder or file that tavq encode wrote"
    try:
        read = _read_parquet if path.suffix == FORMATS["parquet"] else _read_safetensors
        ids, tensors, about = read(path)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as tokens ({error}): {mend}, or encode the images again") from error
    if about.get("kind") != KIND:
        raise ValueError(f"{path} holds no tokens: {mend}")
    if not isinstance(about.get("version"), int) or about["version"] > TOKENS_VERSION:
        raise ValueError(f"{path} was written by a newer release of tavq-plugin: pip install --upgrade tavq-plugin")
    try:
        grids = {int(level): tuple(map(int, shape)) for level, shape in about["grids"].items()}
        indices = {level: tensors[f"level_{level}"].long().view(-1, *shape) for level, shape in grids.items()}
    except (KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): encode the images again") from error
    if any(len(tensor) != len(ids) for tensor in indices.values()):
        raise ValueError(f"{path} is damaged: its levels have other numbers of images than its ids; encode them again")
    return TokenFile(ids, indices, about)


def _read_safetensors(path: Path) -> tuple[list[str], dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        about = json.loads(metadata.get(ABOUT, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return list(map(str, json.loads(metadata.get("ids", "[]")))), tensors, about


def _read_parquet(path: Path) -> tuple[list[str], dict[str, Tensor], dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    about = json.loads((table.schema.metadata or {}).get(ABOUT.encode(), b"{}"))
    names = [name for name in table.column_names if name.startswith("level_")]
    columns = {name: table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in names}
    return table.column("id").to_pylist(), {name: torch.tensor(value) for name, value in columns.items()}, about
