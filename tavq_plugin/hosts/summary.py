"""What `wrap` and `attach` added to a host: one line for the log, and a table."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.protocols import Adapter

logger = logging.getLogger("tavq_plugin")

GRADIENT = {"encoder": "to the encoder", "codebook": "to the codebook", "both": "to the encoder and the codebook"}


class DryRun(NamedTuple):
    """Sizes seen in the dry run that `wrap` makes."""

    image: tuple[int, int]  # h w of the example images, pixels
    grids: tuple[tuple[int, int], ...]  # h w of each level's codes, fine to coarse
    codebook: tuple[int, int] | None  # k c of the host's codebook; None where it has no explicit one


class LevelSummary(NamedTuple):
    """One level of codes."""

    tap: str  # module path
    channels: int  # of the tapped feature; of the host's own level: the code width
    grid: tuple[int, int]  # h w of its codes, on the example images
    codes: int | None  # size of its codebook; None if the host has no explicit one
    text: str = ""  # granularity it is aligned with


@dataclass(frozen=True)
class Summary:
    """What was added to a host: `str()` gives one line, `table()` one row per level."""

    adapter: str
    host: str
    levels: tuple[LevelSummary, ...]
    image: tuple[int, int]  # h w of the example images, pixels
    codebook: str
    gradient: str
    parameters: int  # how many were added
    heads: str = ""  # widths of the text alignment's heads; empty without an alignment
    reach: str = ""  # how the alignment reaches the host: by balance or by weight
    alignment: str = ""  # its settings
    rates: str = ""  # learning rates of the added parameters
    schedule: str = ""  # how the balance or the weight changes over the run

    def __str__(self) -> str:
        taps = ", ".join(f"{level.tap} {_size_text(level.grid)}" for level in self.levels)
        heads = f"heads {self.heads}; " if self.heads else ""
        return (
            f"{self.adapter} on {self.host}: levels {taps} (for {_size_text(self.image)} px); "
            f"codebook {self.codebook}; {heads}{self.parameters:,} parameters added; gradient {self.gradient}"
            f"{f', {self.reach}' if self.reach else ''}"
        )

    def table(self) -> str:
        """A table of the levels, then one line for each other field."""
        rows = [("level", "tap", "channels", "grid", "codes", "text" if self.heads else "")]
        for number, level in enumerate(self.levels, 1):
            codes = "-" if level.codes is None else str(level.codes)
            rows.append((str(number), level.tap, str(level.channels), _size_text(level.grid), codes, level.text))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        rest = {
            "adapter": f"{self.adapter} on {self.host}",
            "grids": f"for images of {_size_text(self.image)} pixels",
            "heads": self.heads,
            "alignment": self.alignment,
            "rates": self.rates,
            "schedule": self.schedule,
            "codebook": self.codebook,
            "gradient": self.gradient,
            "parameters": f"{self.parameters:,} added",
        }
        return "\n".join([*lines, *(f"{name:<12}{value}" for name, value in rest.items() if value)])


def summarize(adapter: Adapter, hierarchy: Hierarchy, sizes: DryRun) -> Summary:
    """Summary of the levels that `wrap` added to a host."""
    own = [len(table.weight) for table in hierarchy.own if isinstance(table, nn.Embedding)]
    host_codes = None if sizes.codebook is None else sizes.codebook[0]
    added = [project for project in hierarchy.project if isinstance(project, nn.Conv2d)]
    width = added[0].out_channels
    levels = [
        LevelSummary(path, project.in_channels, grid, own[index] if own else host_codes)
        for index, (path, project, grid) in enumerate(zip(adapter.taps, added, sizes.grids, strict=False))
    ]
    levels.append(LevelSummary(adapter.quantizer, width, sizes.grids[-1], host_codes))
    host_codebook = "not explicit" if sizes.codebook is None else _size_text(sizes.codebook)
    name = getattr(adapter, "table_name", "")
    if name and sizes.codebook is not None:
        host_codebook += f" ({name})"
    gradient = GRADIENT[hierarchy.grad_to]
    if hierarchy.detach_added_levels:
        gradient += "; the added levels send none to the host"
    return Summary(
        adapter=type(adapter).__name__,
        host=type(adapter.model).__name__,
        levels=tuple(levels),
        image=sizes.image,
        codebook=f"own {_size_text((own[0], width))} per added level, the host's {host_codebook}"
        if own
        else f"shared {host_codebook}",
        gradient=gradient,
        parameters=sum(parameter.numel() for parameter in hierarchy.parameters()),
    )


def _size_text(sizes: tuple[int, int]) -> str:
    return "×".join(map(str, sizes))
