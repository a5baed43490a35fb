"""Divide records into three splits: train, tune (settings are chosen on it) and test (measured once, at the end)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tavq_plugin.data.records import Record

Split = Literal["tune", "test"]
HELD_OUT: tuple[Split, ...] = ("tune", "test")
SPLIT_BY_NAME: dict[str, Split] = {
    "val": "tune", "valid": "tune", "validation": "tune", "dev": "tune", "tune": "tune", "test": "test",
    "val2014": "tune", "val2017": "tune", "testA": "test", "testB": "test",  # of COCO and RefCOCO
}  # fmt: skip
SHARE = {"tune": 0.15, "test": 1 / 6}  # of the records that are drawn for a split
MOST = {"tune": 500, "test": 1000}  # records that are drawn for a split, at most


class Splits(NamedTuple):
    """Records of each split; no record is in two of them."""

    train: list[Record]
    tune: list[Record]
    test: list[Record]


def split_records(
    records: Sequence[Record], *, n_train: int | None = None, n_eval: int | None = None, seed: int = 0
) -> Splits:
    """Three splits; what is drawn depends on `seed` and the records alone, not on `n_train` or `n_eval`.

    Splits that the records name (those of `SPLIT_BY_NAME`) are used. A split that they do not name is
    drawn from the other records: 15 % of them to tune, at most 500, and a sixth to test, at most 1,000. The draw and
    the training split take only records from the sources of the named held-out records, if there are such.

    Args:
        records: All records.
        n_train: Training records, at most. Default: all.
        n_eval: Tuning records, at most. Default: all. The test split is always whole.
        seed: Seed of the draw.
    """
    draw = random.Random(seed)
    named = {
        split: [record for record in records if SPLIT_BY_NAME.get(record.split or "") == split] for split in HELD_OUT
    }
    others = [record for record in records if (record.split or "") not in SPLIT_BY_NAME]
    if not others:  # all records name a held-out split
        named, others = {split: [] for split in HELD_OUT}, list(records)
    held_out = [*named["tune"], *named["test"]]
    if held_out and others:
        sources = {record.source for record in held_out}
        others = [record for record in others if record.source in sources] or others
    drawn = {
        split: min(MOST[split], max(1, round(SHARE[split] * len(others)))) for split in HELD_OUT if not named[split]
    }
    if drawn and sum(drawn.values()) < len(others):
        mixed = draw.sample(others, len(others))
        for split, count in drawn.items():
            named[split], mixed = mixed[:count], mixed[count:]
        taken = {id(record) for split in drawn for record in named[split]}
        others = [record for record in others if id(record) not in taken]
    elif "tune" in drawn and len(others) > 1:  # too few for both: none to test
        named["tune"], others = others[:1], others[1:]
    tune, train = named["tune"], others
    if n_train is not None and n_train < len(train):
        train = draw.sample(train, n_train)
    if n_eval is not None and n_eval < len(tune):
        tune = draw.sample(tune, n_eval)
    return Splits(train, tune, named["test"])
