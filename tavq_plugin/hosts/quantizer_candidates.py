"""What looks like a quantizer or its table in an unknown host, for an error; nothing is inferred from it.

A module or method looks like a quantizer by its name, or by what it returned in a dry run: as many indices as its input
has places, or a map whose vectors are rows of one of the host's tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tavq_plugin.hosts.call_sites import find_callee, hook_calls
from tavq_plugin.hosts.find_table import TableForm, matrices_of
from tavq_plugin.hosts.host_functions import own_methods, tensors_of
from tavq_plugin.hosts.quantization import nearest

_NAMES = re.compile(r"quant|vq|codebook", re.IGNORECASE)
_SHOWN = 6
_SAMPLED = 64  # vectors of a map that are looked for in a table
_MOST_CODES = 64  # per place
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_FORMS = tuple(TableForm(transposed, normalised) for normalised in (False, True) for transposed in (False, True))


class Candidates(NamedTuple):
    """What looks like a quantizer or its table, in words for an error, likeliest first."""

    quantizers: list[str]
    tables: list[str]  # those whose rows a dry run showed, without those that a quantizer is said to return
    likeliest: str  # path of the first quantizer; empty if there is none
    not_run: str = ""  # why no dry run could show anything; empty if there was one

    @property
    def sentences(self) -> str:
        """All of it, for an error."""
        parts = [f"In this host these look like quantizers: {', '.join(self.quantizers)}"] if self.quantizers else []
        parts = parts or ["In this host nothing looks like a quantizer"]
        parts += [f"A dry run showed rows of these tables: {', '.join(self.tables)}"] if self.tables else []
        parts += [f"{self.not_run}, so only names were looked at"] if self.not_run else []
        return ". ".join(parts)


class _Seen(NamedTuple):
    """What a dry run showed of one host."""

    returned: dict[str, str]  # path of a module or method → what it returned, if that looks like a quantizer's output
    rows_at: dict[str, str]  # a table and its form → path of the first module that took or returned rows of it


def quantizer_candidates(host: nn.Module, run: Callable[[], Any] | None = None) -> Candidates:
    """What looks like a quantizer or its table; `run` runs the host on images, and without it names alone count.

    Those that behave like quantizers come first. Of nested ones the outermost is named.

    >>> class VQ(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.table = nn.Embedding(16, 8)
    >>> quantizer_candidates(nn.Sequential(nn.Identity(), VQ())).quantizers
    ["'1' (VQ, with table.weight 16×8)"]
    """
    seen = _Seen({}, {}) if run is None else _watch(host, run)
    behave = [path for path in seen.returned if not _inside(path, seen.returned)]
    named: list[str] = []
    for path, module in host.named_modules():
        looks_so = _NAMES.search(type(module).__name__) or _NAMES.search(path.rpartition(".")[2])
        has_parts = len(list(module.children())) > 0 or tensors_of(module)
        is_layer = isinstance(module, nn.Conv2d | nn.Linear)  # taming's quant_conv
        holds_one = any(_inside(other, [path]) for other in behave)
        if path and looks_so and has_parts and not is_layer and not holds_one and not _inside(path, [*behave, *named]):
            named.append(path)
    named += [name for name in own_methods(host) if _NAMES.search(name)]
    paths = list(dict.fromkeys([*behave, *named]))[:_SHOWN]
    return Candidates(
        [_described(host, path, seen.returned.get(path)) for path in paths],
        [
            f"{table} (at {path!r})"
            for table, path in seen.rows_at.items()
            if not any(table in returned for returned in seen.returned.values())
        ][:_SHOWN],
        paths[0] if paths else "",
    )


def _inside(path: str, others: Any) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _described(host: nn.Module, path: str, returned: str | None) -> str:
    """A candidate's path, class and matrices, and what it returned."""
    if find_callee(host, path) is not None:
        kind = "a method"
    else:
        module = host.get_submodule(path)
        tables = [f"{name} {_size(tensor)}" for name, tensor in tensors_of(module) if tensor.ndim == 2]
        kind = type(module).__name__ + (f", with {', '.join(tables[:3])}" if tables else "")
    return f"{path!r} ({kind}{f'; in a dry run it returned {returned}' if returned else ''})"


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def _watch(host: nn.Module, run: Callable[[], Any]) -> _Seen:
    """What each module and method of a host takes and returns while it runs, as far as it looks like quantizing."""
    seen = _Seen({}, {})
    tables = _tables_of(host)

    def watcher(path: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            given = next(_tensors_in([*args, *kwargs.values()]), None)
            if given is None or not given.is_floating_point() or given.ndim < 2:
                return
            made = list(_tensors_in([output]))
            maps = [tensor for tensor in made if tensor.shape == given.shape and tensor.is_floating_point()]
            indices = any(tensor.dtype in _INTEGERS and _fits(tensor, given) for tensor in made)
            entering = _table_with(given, tables)
            leaving = None if entering else next(filter(None, (_table_with(tensor, tables) for tensor in maps)), None)
            for table in (entering, leaving):
                if table is not None:
                    seen.rows_at.setdefault(table, path)
            parts = [*(["indices"] if indices else []), *([f"rows of {leaving}"] if leaving else [])]
            if parts:
                seen.returned.setdefault(path, " and ".join(parts))

        return watch

    methods = [name for name in own_methods(host) if name != "forward" and find_callee(host, name) is not None]
    modules = [path for path, _ in host.named_modules() if path]
    with ExitStack() as stack:
        for path in (*modules, *methods):
            stack.callback(hook_calls(host, path, watcher(path)).remove)
        run()
    return seen


def _fits(indices: Tensor, given: Tensor) -> bool:
    """Whether there are as many indices as places in a map, b c h w or b … c, or a few per place."""
    places = {given.numel() // given.shape[1], given.numel() // given.shape[-1]}
    return any(n and indices.numel() % n == 0 and indices.numel() <= _MOST_CODES * n for n in places)


def _tables_of(host: nn.Module) -> dict[str, Tensor]:
    """Matrices that may be codebooks, in every plain form, by words for an error; k c. Weights of layers are none."""
    layers = [
        path
        for path, module in host.named_modules()
        if type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Embedding)
    ]
    tables = {}
    for path, tensor in matrices_of(host):
        if path.rpartition(".")[0] in layers and path.rpartition(".")[0]:
            continue
        for form in _FORMS:
            how = f", {form}" if str(form) else ""
            tables[f"{path!r} {_size(tensor)}{how}"] = form.table(tensor.detach(), host)
    return tables


def _table_with(tensor: Tensor, tables: dict[str, Tensor]) -> str | None:
    """The first table of which all vectors of a map, b c h w or b … c, are rows; None if there is none."""
    for axis in (1, -1):
        vectors = tensor.detach().movedim(axis, -1).flatten(0, -2)
        vectors = vectors[:: max(1, len(vectors) // _SAMPLED)][:_SAMPLED].double()
        if len(vectors) < 2 or not vectors.isfinite().all() or not (vectors != vectors[0]).any():
            continue  # of a constant map nothing can be said
        for name, table in tables.items():
            if table.shape[1] == vectors.shape[1] > 1 and len(table) > 1 and _are_rows(vectors, table.double()):
                return name
    return None


def _are_rows(vectors: Tensor, table: Tensor) -> bool:
    """Whether each vector is a row of the table, up to rounding; n c, k c -> bool."""
    found = nearest(vectors.T[None, :, None].contiguous(), table)[0, 0]
    return bool((table[found] - vectors).abs().max() <= 1e-4 * vectors.abs().max())


def _tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors_in(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)
        elif hasattr(value, "__dataclass_fields__"):
            yield from _tensors_in(vars(value).values())
