"""The codes and the units of a page as Parquet files, for Embedding Atlas, pandas and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tavq_plugin.io.atomic import whole_file

TABLES = ("codes.parquet", "units.parquet")


def save_tables(content: Mapping[str, Any], out: Path) -> list[Path]:
    """Write one row per code with a card, and one row per unit of each shown image; returns the files."""
    paths = [out / name for name in TABLES]
    for path, rows in zip(paths, (code_rows(content), unit_rows(content)), strict=True):
        with whole_file(path) as partial:
            pq.write_table(rows, partial)
    return paths


def code_rows(content: Mapping[str, Any]) -> pa.Table:
    """Columns: run, level, code, share, images, x, y (the page's map), text (words above chance) and their evidence."""
    rows = []
    for level, cards in zip(content["levels"], content["cards"], strict=True):
        for card in cards["cards"]:
            x, y = level["plane"]["points"][card["code"]] if level["plane"] else (None, None)
            above = [word for word in card["words"] if word[5]]
            rows.append(
                {"run": content["run"]["label"], "level": level["number"], "code": card["code"],
                 "share": card["share"], "images": card["images"], "x": x, "y": y,
                 "text": ", ".join(word[0] for word in above), "words": [word[0] for word in above],
                 "information": [word[1] for word in above], "chance_high": [word[4] for word in above],
                 "neighbours": card["neighbours"]}
            )  # fmt: skip
    numbers = {"level": pa.int64(), "code": pa.int64(), "images": pa.int64(), "share": pa.float64()}
    lists = {
        "words": pa.list_(pa.string()),
        "information": pa.list_(pa.float64()),
        "chance_high": pa.list_(pa.float64()),
    }
    schema = {"run": pa.string(), **numbers, "x": pa.float64(), "y": pa.float64(), "text": pa.string(), **lists}
    return pa.Table.from_pylist(rows, pa.schema({**schema, "neighbours": pa.list_(pa.int64())}))


def unit_rows(content: Mapping[str, Any]) -> pa.Table:
    """Columns: image (from 1), level, unit, mass, entropy, peak, rank, near_uniform; no row for a run without plans."""
    none: list[dict[str, Any]] = [{"units": []}] * len(content["levels"])  # of a run without plans
    rows = [
        {"image": number, "level": level["number"], "unit": unit["text"], "mass": unit["mass"],
         "entropy": unit["entropy"], "peak": unit["peak"], "rank": unit["rank"],
         "near_uniform": unit["entropy"] >= content["near_uniform"]}
        for number, image in enumerate(content["images"], 1)
        for level, plan in zip(content["levels"], image["plans"] or none, strict=True)
        for unit in plan["units"]
    ]  # fmt: skip
    numbers = {"mass": pa.float64(), "entropy": pa.float64(), "peak": pa.float64(), "rank": pa.int64()}
    schema = {"image": pa.int64(), "level": pa.int64(), "unit": pa.string(), **numbers, "near_uniform": pa.bool_()}
    return pa.Table.from_pylist(rows, pa.schema(schema))
