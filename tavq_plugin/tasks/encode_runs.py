"""The tokens that a run makes of a task's images: encoded once, checked against the decoder, and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tavq_plugin.evaluation.sources.read_sources import Source, UserTokenizer
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import save_tensors
from tavq_plugin.io.ownership import claim
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.tasks.fit_model import MAKER
from tavq_plugin.tasks.task import EncodedRun
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.tasks.tokens import CodeSequences, LevelGrid, TokenLayout
from tavq_plugin.tasks.trained_heads import trained_heads
from tavq_plugin.types import Codes, Level

VERSION = 1  # of the file's content
FILE = "tokens.safetensors"
LEVELS = ("final", "all")
SPLITS = ("train", "held_out")
CHECKED = 4  # images on which the vectors of the table are compared with the decoder's
VECTOR_TOLERANCE = 1e-3  # of the greatest entry: the straight-through sum rounds
PIXEL_TOLERANCE = 2  # of 255
Progress = Callable[[int, int], None]


def encode_run(
    source: Source,
    data: TaskData,
    folder: Path,
    *,
    levels: str = "final",
    batch_size: int = 50,
    tell: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> EncodedRun:
    """A run with the tokens of the data's images; they are read from `folder` if this run has encoded them there.

    A user's own tokenizer stays as it was.

    Args:
        source: One of `read_sources`.
        data: The images, of the size that the run was trained at.
        folder: Where the tokens are kept.
        levels: "final", the level that the decoder reads, or "all", that level first and the finer ones after it.
        batch_size: Images per batch.
        tell: Called with a message if the folder's tokens are those of other images, and are replaced.
        progress: Called with the number of images that are encoded, and of all images.

    Raises:
        ValueError: The folder holds the tokens of another tokenizer, the host shows no codebook, its indices do not
            stand for the decoder's vectors, or nobody trained the levels that are asked for.
        FloatingPointError: The codes are not finite.
        FileExistsError: A file that we did not write is in the way.
    """
    if levels not in LEVELS:
        raise ValueError(f"levels={levels!r}: give one of {', '.join(LEVELS)}")
    loaded, images = source.load(), (data.train.images, data.held_out.images)
    tokenizer, label = loaded.tokenizer, f"{source.name}, seed {source.seed} ({source.origin})"
    if levels == "all" and not loaded.own_levels:
        raise ValueError(f'{label}: nobody trained its added levels; encode it with levels="final"')
    about = {
        "version": VERSION,
        "tokenizer": source.settings(images[0][:CHECKED]),
        "images": _hash_of(*images),
        "levels": levels,
    }
    claim(folder, (FILE,), MAKER)
    found = _read(folder / FILE, about, label, tell)
    if found is None:
        with _quiet(source, tokenizer):
            tables = _tables(label, tokenizer, levels)
            layout = _verified_layout(label, tokenizer, images[0][:CHECKED], tables, levels)
            tokens = _tokens(tokenizer, images, layout, levels, batch_size, progress)
        found = {"train": tokens[0].int(), "held_out": tokens[1].int(), "vectors": torch.cat(tables).float().cpu()}
        grids = [list(grid) for grid in layout.grids]
        save_tensors(found, folder / FILE, {"about": json.dumps(about), "grids": json.dumps(grids)})
    else:
        layout = TokenLayout(tuple(LevelGrid(*grid) for grid in _metadata(folder / FILE)["grids"]))
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    train, held_out = (
        CodeSequences(found[split].long(), layout, found["vectors"], f"{key} {split}")
        for split in ("train", "held_out")
    )
    align = loaded.align if isinstance(source, UserTokenizer) else trained_heads(source, tokenizer)
    return EncodedRun(source.name, source.seed, tokenizer, align, train, held_out)


def _read(file: Path, about: Mapping[str, Any], label: str, tell: Callable[[str], None]) -> dict[str, Tensor] | None:
    """The tensors of the file if `about` says so; None if they must be made. ValueError for those of another run."""
    if not file.is_file():
        return None
    theirs = _metadata(file).get("about", {})
    if theirs == about:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in (*SPLITS, "vectors")}
    if theirs and all(theirs.get(name) == about[name] for name in ("images", "levels", "version")):
        raise ValueError(
            f"{file} holds the tokens of another tokenizer than {label}, of the same images: its weights or settings "
            "have changed since; give another --out, or delete that file to encode the images again"
        )
    tell(f"{file} holds the tokens of other images or levels: they are replaced")
    return None


def _metadata(file: Path) -> dict[str, Any]:
    """What the file says of itself; {} if it cannot be read."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: json.loads(value) for name, value in (tensors.metadata() or {}).items()}
    except (SafetensorError, ValueError):
        return {}


@contextmanager
def _quiet(source: Source, tokenizer: Tokenizer) -> Iterator[None]:
    """Eval mode without gradient; at the end everything of the user's is as before."""
    with source.quiet() if isinstance(source, UserTokenizer) else eval_without_trace(tokenizer):
        yield


def _of_sequence(codes: Codes, levels: str) -> list[Level]:
    """The levels in the order of the sequence: the decoder's first, then the others from coarse to fine."""
    return [codes.final] if levels == "final" else list(reversed(codes.levels))


def _tables(label: str, tokenizer: Tokenizer, levels: str) -> list[Tensor]:
    """The codebook of each level in the order of the sequence, k c. ValueError if the host shows none."""
    shared = tokenizer.adapter.codebook()
    host = type(tokenizer.host).__name__
    if shared is None:
        raise ValueError(
            f"{label}: {host} shows no codebook, so its indices cannot be turned into vectors; these tasks need a "
            "quantizer with one k c table (no lookup-free, residual or grouped quantizer)"
        )
    if shared.shape[1] != tokenizer.code_width:
        raise ValueError(
            f"{label}: the codebook of {host} has vectors of width {shared.shape[1]}, and its decoder reads "
            f"{tokenizer.code_width}: one index does not stand for one vector, which these tasks need"
        )
    if levels == "final":
        return [shared.detach()]
    own = [embedding.get_parameter("weight").detach() for embedding in tokenizer.hierarchy.own]
    added = own or [shared.detach()] * len(tokenizer.adapter.taps)
    return [shared.detach(), *reversed(added)]


def _verified_layout(
    label: str, tokenizer: Tokenizer, images: Tensor, tables: list[Tensor], levels: str
) -> TokenLayout:
    """The layout, after a check that the tables' vectors at the indices are the codes, and decode as they do."""
    codes = tokenizer.encode(to_float(images.to(next(tokenizer.parameters()).device)))
    looked_up, grids = [], []
    for level, table in zip(_of_sequence(codes, levels), tables, strict=True):
        if level.indices.ndim != 3 or not 0 <= int(level.indices.min()) <= int(level.indices.max()) < len(table):
            raise ValueError(f"{label}: its indices are no numbers of its {len(table)} codes, one per place")
        vectors = rearrange(F.embedding(level.indices, table), "b h w c -> b c h w").to(level.quantized.dtype)
        if not (vectors - level.quantized).abs().max() <= VECTOR_TOLERANCE * level.quantized.abs().max():
            raise ValueError(
                f"{label}: the codebook's vectors at the indices are not the vectors that its decoder reads, as in "
                "residual and multi-scale quantizers; these tasks need a host with one index for one vector"
            )
        looked_up.append(vectors)
        _, height, width = level.indices.shape
        grids.append(LevelGrid(height, width, len(table)))
    try:
        own, ours = to_uint8(tokenizer.decode(codes)), to_uint8(tokenizer.adapter.decode(looked_up[0]))
    except NotImplementedError:  # a host without a decoder: tasks that read codes can still be run
        return TokenLayout(tuple(grids))
    if (own.int() - ours.int()).abs().max() > PIXEL_TOLERANCE:
        raise ValueError(
            f"{label}: its decoder gives other images from the codebook's vectors than from its own codes, or is "
            "random in eval mode; tavq doctor shows what is read"
        )
    return TokenLayout(tuple(grids))


def _tokens(
    tokenizer: Tokenizer,
    images: tuple[Tensor, Tensor],
    layout: TokenLayout,
    levels: str,
    batch_size: int,
    progress: Progress | None,
) -> list[Tensor]:
    """The tokens of both splits, on the CPU; each n s."""
    device, total, done = next(tokenizer.parameters()).device, sum(map(len, images)), 0
    both = []
    for split in images:
        parts = []
        for part in split.split(batch_size):
            codes = tokenizer.encode(to_float(part.to(device)))
            if not codes.final.quantized.isfinite().all():
                raise FloatingPointError("the codes hold NaN or infinity: the run is broken")
            parts.append(layout.flatten([level.indices.cpu() for level in _of_sequence(codes, levels)]))
            done += len(part)
            if progress is not None:
                progress(done, total)
        both.append(torch.cat(parts))
    return both


def _hash_of(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
