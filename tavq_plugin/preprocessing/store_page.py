"""Statistics of a text store as one HTML page that needs no server, no script and no network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tavq_plugin.io.atomic import save_text
from tavq_plugin.io.page_template import page_template, policy_source
from tavq_plugin.io.redacted import redacted, with_short_paths
from tavq_plugin.preprocessing.rejections import REJECTED
from tavq_plugin.preprocessing.shard_captions import FOLDER as CAPTIONS
from tavq_plugin.text.store_info import StoreInfo, store_info
from tavq_plugin.text.store_statistics import StoreStatistics, store_statistics
from tavq_plugin.types import GRANULARITIES

MARK = '<meta name="generator" content="tavq store info">'  # only a page with it is ever replaced
BARS = 24  # of a histogram, at most
REJECTIONS = 50  # that are listed, at most
_WIDTH = 640  # of a chart, in its own units


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, and one row of the table behind it."""

    label: str
    number: int
    share: float  #: of the longest bar, 0 to 1


@dataclass(frozen=True)
class Chart:
    """Bars with a title; the page draws them and lists them in a table."""

    title: str
    what: str  #: what the label of a bar is, the head of the table's first column
    bars: Sequence[Bar]

    @property
    def width(self) -> int:
        """Of the drawing, in its own units."""
        return _WIDTH


def write_store_page(folder: str | Path, out: str | Path) -> StoreInfo:
    """Write the page of a finished store, and return the numbers of the store.

    Raises:
        FileExistsError: `out` is a file that this function did not write.
        ValueError: The store is not finished, or a shard is truncated.
        ImportError: jinja2 is not installed.
    """
    folder, out = Path(folder), Path(out)
    if out.is_dir() or (out.exists() and MARK not in out.read_text(encoding="utf-8", errors="replace")[:2000]):
        raise FileExistsError(f"{out} is in the way and is no page of a store: give --page another name, or move it")
    info = store_info(folder)
    html = store_page(folder, info, store_statistics(folder))
    save_text(out, html)
    return info


def store_page(folder: Path, info: StoreInfo, found: StoreStatistics) -> str:
    """The page as HTML; every text of the data is escaped, and a policy allows its own style alone."""
    template = page_template("tavq_plugin", "preprocessing", "store_page.html.j2")
    from markupsafe import Markup  # it comes with jinja2

    style = (files("tavq_plugin.preprocessing") / "store_page.css").read_text(encoding="utf-8")
    rejections = _rejections(folder / REJECTED)
    listed = list(islice(rejections, REJECTIONS))
    return template.render(
        name=folder.resolve().name,
        mark=Markup(MARK),
        policy=f"default-src 'none'; style-src {policy_source(style)}; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        rows=list(info.rows()),
        lengths=[
            *(_histogram(f"Different {name}s per text", f"{name}s", found.units[name]) for name in GRANULARITIES),
            _histogram("Characters per text, in its different sentences", "characters", found.characters),
        ],
        frequent=[
            _chart(f"Most frequent {name}s, by the number of texts that have them", name, found.frequent[name])
            for name in GRANULARITIES
        ],
        language=found.language,
        scripts=_chart("Texts by the script of their first letter", "script", list(found.scripts.items())),
        flags=_flags(folder / CAPTIONS),
        captions=CAPTIONS,
        rejections_file=REJECTED,
        rejected=len(listed) + sum(1 for _ in rejections),
        rejections=listed,
    )


def _chart(title: str, what: str, pairs: Sequence[tuple[str, int]]) -> Chart:
    most = max((number for _, number in pairs), default=1) or 1
    return Chart(title, what, [Bar(label, number, number / most) for label, number in pairs])


def _histogram(title: str, what: str, counts: np.ndarray) -> Chart:
    """Bars of equal width over 0, 1, 2, …"""
    width = max(1, -(-len(counts) // BARS))
    pairs = []
    for start in range(0, len(counts), width):
        label = f"{start:,}" if width == 1 else f"{start:,}–{start + width - 1:,}"
        pairs.append((label, int(counts[start : start + width].sum())))
    return _chart(title, what, pairs)


def _flags(folder: Path) -> Chart | None:
    """The flags of the texts that `prepare` requested; None if it requested none."""
    shards = sorted(folder.glob("shard-*.jsonl"))
    if not shards:
        return None
    counts: Counter[str] = Counter()
    for row in (row for file in shards for row in _json_lines(file)):
        counts[str(row["flag"]) if row.get("flag") else "no flag"] += 1
    return _chart("Texts by flag", "flag", counts.most_common())


def _rejections(file: Path) -> Iterator[dict[str, Any]]:
    """The records that `prepare` left out, without keys, home folders and absolute paths."""
    for row in _json_lines(file):
        shown = {name: redacted(str(row.get(name) or "")) for name in ("file", "line", "reason")}
        yield {**with_short_paths(shown), "file": Path(shown["file"]).name}


def _json_lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a file of lines; none if it is missing. Raises ValueError with the line that is no object."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}: no JSON object; run the same tavq prepare again")
            yield row
