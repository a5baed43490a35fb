"""The floors and ceilings of a comparison, measured once per seed and kept in the comparison's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tavq_plugin.evaluation.evaluate import score_codes
from tavq_plugin.evaluation.floors.features import CEILINGS, floors
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.results import (
    MAKER,
    RunResults,
    load_results,
    refuse_foreign_results,
    save_results,
)
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json
from tavq_plugin.io.ownership import claim, refuse_taken

DRAWN = ("patch-kmeans", "untrained")  # floors that depend on a seed; the others are measured once
CEILING = "mobilenet"


class FloorResults(NamedTuple):
    """What was measured of the floors and ceilings, by name."""

    runs: dict[str, dict[int, RunResults]]
    titles: dict[str, str]
    left_out: dict[str, str]  # why a floor was not measured


def floor_results(
    targets: TextTargets,
    judges: Judges,
    folder: Path,
    *,
    codes: int,
    grid: int,
    seeds: Sequence[int],
    untrained: Callable[[int], Tokenizer] | None,
    weights: Path | None,
    settings: Mapping[str, Any],
    report: Callable[[str, int, int], None] = lambda name, done, steps: None,
) -> FloorResults:
    """Measure every floor on the same images, texts and probes as the runs; measured ones are only read.

    Args:
        targets: The texts and images of the comparison.
        judges: The networks that judge reconstructions.
        folder: Where results are kept, one folder per floor and seed.
        codes: Number of codes of the clustered floors.
        grid: Places per side of patch k-means.
        seeds: Seeds of the clustered floors; the other floors take the first.
        untrained: Builds an untrained tokenizer from a seed. None: that floor is left out.
        weights: Folder with weights of the ceiling's network.
        settings: What results depend on besides codes and grid; floors of other settings are measured again.
        report: Called with "floors", the number of seeds done and their total.
    """
    settings = {**settings, "floors": {"codes": codes, "grid": grid, "weights": weights is not None}}
    measured = FloorResults({}, {}, {})
    for number, seed in enumerate(seeds):
        report("floors", number, len(seeds))
        is_first = seed == seeds[0]
        of_seed = _saved_floors(folder, seed, settings, whole=is_first)
        if of_seed is None:
            claim(folder, [f"seed{seed}.json"], MAKER, former=_former(folder, f"seed{seed}.json"))
            of_seed = FloorResults({}, {}, {})
            for floor in floors(
                targets.corpus.images[: len(targets.probe_rows)], targets.corpus.images[targets.corpus.n_train :],
                codes=codes, grid=grid, seed=seed, transport_images=targets.transport_images,
                untrained=None if untrained is None else partial(untrained, seed), weights=weights,
                tell=of_seed.left_out.__setitem__, ceilings={CEILING: CEILINGS[CEILING]} if is_first else {},
            ):  # fmt: skip
                if not is_first and floor.name not in DRAWN:
                    continue
                results = score_codes(floor.train, floor.held_out, [floor.codes], targets, judges)
                save_results(folder / floor.name / f"seed{seed}", results, {**settings, "floor": floor.name})
                of_seed.titles[floor.name] = floor.title
                of_seed.runs[floor.name] = {seed: results}
            about = {"settings": settings, "titles": of_seed.titles, "left_out": of_seed.left_out}
            save_json(folder / f"seed{seed}.json", about)
        measured = _joined(measured, of_seed)
    report("floors", len(seeds), len(seeds))
    return measured


def _saved_floors(folder: Path, seed: int, settings: Mapping[str, Any], *, whole: bool) -> FloorResults | None:
    """The floors of a seed that were measured with the same settings; None if one of them is not there.

    whole: whether the floors that do not depend on a seed are of this one. It is the first seed asked for now, which
    may have been another when the floors were measured.
    """
    about = read_json(folder / f"seed{seed}.json", strict=False)
    if not _is_ours(about) or about["settings"] != settings:
        return None
    names = [name for name in about["titles"] if whole or name in DRAWN]
    if whole and set(names) <= set(DRAWN):
        return None
    runs: dict[str, dict[int, RunResults]] = {}
    for name in names:
        results = load_results(folder / name / f"seed{seed}", {**settings, "floor": name})
        if results is None:
            return None
        runs[name] = {seed: results}
    return FloorResults(runs, {name: about["titles"][name] for name in names}, about["left_out"])


def _joined(first: FloorResults, second: FloorResults) -> FloorResults:
    """The floors of both; a floor of both keeps its first title."""
    runs = {name: first.runs.get(name, {}) | second.runs.get(name, {}) for name in (*first.runs, *second.runs)}
    return FloorResults(runs, second.titles | first.titles, first.left_out | second.left_out)


def refuse_foreign_floors(folder: Path, seeds: Sequence[int]) -> None:
    """Raise FileExistsError if a folder of floors holds a file that would be overwritten and is not ours."""
    for seed in seeds:
        name = f"seed{seed}.json"
        refuse_taken(folder, [name], MAKER, former=_former(folder, name))
        for place in sorted(folder.glob(f"*/seed{seed}")):
            refuse_foreign_results(place)


def _former(folder: Path, name: str) -> tuple[str, ...]:
    """The file, if its content shows that we wrote it before it was claimed."""
    return (name,) if _is_ours(read_json(folder / name, strict=False)) else ()


def _is_ours(about: Any) -> bool:
    return isinstance(about, dict) and {"settings", "titles", "left_out"} <= about.keys()
