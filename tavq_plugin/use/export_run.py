"""A run as others read it: a hub folder, the host's own checkpoint, or a table of token vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.distributed import gather_sharded
from tavq_plugin.io.atomic import save_json, save_tensors, whole_file, writable
from tavq_plugin.io.ownership import claim
from tavq_plugin.io.storable import storable
from tavq_plugin.tasks.tokens import LevelGrid, TokenLayout
from tavq_plugin.training.build_host import build_host
from tavq_plugin.use.find_run import CONFIG, WEIGHTS
from tavq_plugin.use.run import Run

MAKER = "tavq export"
KINDS = ("hub", "host", "table")


def export_run(run: Run, out: Path, kind: str = "hub", *, licence: str | None = None) -> list[Path]:
    """Write a run into a folder; the files written.

    Args:
        run: The run.
        out: A folder; only what `tavq export` wrote there is overwritten.
        kind: "hub": `Run.save_pretrained`, with a model card. "host": the host's own checkpoint, in its codebase's
            format. "table": the vectors of all tokens, as a codebook for a language model.
        licence: Of the model card, as the hub names it, such as "apache-2.0".

    Raises:
        ValueError: The kind is unknown, the host shows no codebook, or what was written does not load back.
        FileExistsError: A file that `tavq export` did not write is in the way.
    """
    writers: dict[str, Callable[[], list[str]]] = {
        "hub": lambda: _write_hub(run, out, licence),
        "host": lambda: _write_host(run, out),
        "table": lambda: _write_table(run, out),
    }
    if kind not in writers:
        raise ValueError(f"no export as {kind!r}: give one of {', '.join(KINDS)}")
    writable(out)
    return [out / name for name in writers[kind]()]


def _write_hub(run: Run, out: Path, licence: str | None) -> list[str]:
    names = [*WEIGHTS, "README.md", CONFIG]
    claim(out, names, MAKER)
    (out / "README.md").unlink(missing_ok=True)  # huggingface_hub keeps one that is there
    run.save_pretrained(out, model_card_kwargs={"licence": licence})
    return names


def _write_host(run: Run, out: Path) -> list[str]:
    """By the host's own `save_pretrained` if it has one, else as the state dict that its codebase loads."""
    host: Any = run.tokenizer.host
    if callable(getattr(host, "save_pretrained", None)):
        folder = out / "host"
        claim(out, ("host/",), MAKER)
        claim(folder, ("*.json", "*.safetensors", "*.md"), MAKER)
        host.save_pretrained(folder)
        _refuse_difference(type(host).from_pretrained(folder), host, folder)
        return ["host"]
    names = ["host.ckpt", "host.json"]
    claim(out, names, MAKER)
    recipe = run.recipe.host
    params = dict(recipe.params)
    with whole_file(out / names[0]) as partial:
        torch.save({"state_dict": {name: value.cpu() for name, value in host.state_dict().items()}}, partial)
    made = type(host).__module__ + "." + type(host).__qualname__
    save_json(out / names[1], {"target": recipe.target, "class": made, "params": params})
    again = build_host(recipe, run.recipe.resolution, allow=run.source.allow)
    again.load_state_dict(torch.load(out / names[0], weights_only=True)["state_dict"], strict=True)
    _refuse_difference(again, host, out / names[0])
    return names


def _refuse_difference(again: nn.Module, host: nn.Module, place: Path) -> None:
    """Raise ValueError if a host that was loaded again has other weights."""
    theirs, ours = again.state_dict(), host.state_dict()
    other = [name for name in ours if isinstance(ours[name], Tensor)
             and not (name in theirs and torch.equal(theirs[name].cpu(), ours[name].cpu()))]  # fmt: skip
    if other:
        raise ValueError(
            f"{place} loads back with another {other[0]} ({len(other)} of {len(ours)} differ): this host's own format "
            "does not hold all of its weights; use host.safetensors of the run instead"
        )


@torch.no_grad()
def _write_table(run: Run, out: Path) -> list[str]:
    """table.safetensors: `vectors`, and with heads `text_vectors`, one row per token; table.json: what a row is."""
    tokenizer, names = run.tokenizer, ["table.safetensors", "table.json"]
    shared = gather_sharded(tokenizer.adapter.codebook())
    if shared is None or shared.shape[1] != tokenizer.code_width:
        raise ValueError(
            f"{type(tokenizer.host).__name__} shows no codebook (k c) of vectors that its decoder reads, so there is "
            "no table of tokens to export; tavq encode gives the indices"
        )
    claim(out, names, MAKER)
    own: list[Tensor] = [embedding.get_parameter("weight") for embedding in tokenizer.hierarchy.own]
    tables = [shared, *reversed(own or [shared] * len(tokenizer.adapter.taps))]  # as TokenLayout: the decoder's first
    levels = list(range(len(tables), 0, -1))
    grids = tuple(LevelGrid(*grid, len(table)) for grid, table in zip(_grids(run), tables, strict=True))
    layout = TokenLayout(grids)
    content = {"vectors": torch.cat(tables).float().cpu()}
    if run.align is not None:
        content["text_vectors"] = torch.cat(
            [_in_text_space(run, table, level - 1) for table, level in zip(tables, levels, strict=True)]
        )
    save_tensors(storable(content), out / names[0], {"fingerprint": run.fingerprint})
    about: dict[str, Any] = {
        "about": "A token is a code's index plus its level's offset; a row of vectors is the vector of a token. "
        "text_vectors are the same codes in the space of the text encoder, by the heads of the alignment.",
        "levels": [
            {"level": level, "height": grid.height, "width": grid.width, "codes": grid.codes, "offset": offset}
            for level, grid, offset in zip(levels, layout.grids, layout.offsets, strict=True)
        ],
        "mask": layout.mask,
        "tokens": layout.vocabulary,
        "fingerprint": run.fingerprint,
    }
    save_json(out / names[1], about)
    return names


def _grids(run: Run) -> list[tuple[int, int]]:
    """The grid of each level at the run's resolution, the decoder's level first."""
    from tavq_plugin.use.encode_batch import encode_batch

    side = run.recipe.resolution
    indices = encode_batch(run.tokenizer, torch.zeros(1, 3, side, side, dtype=torch.uint8))
    return [(level.shape[1], level.shape[2]) for level in reversed(indices)]


def _in_text_space(run: Run, table: Tensor, level: int) -> Tensor:
    """The codes of a level as unit vectors of the text space; k c -> k d float32."""
    assert run.align is not None
    head = run.align.project[level]
    return F.normalize(head(table.to(next(head.parameters()).dtype)).float(), dim=-1).cpu()
