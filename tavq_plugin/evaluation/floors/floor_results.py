"""The floors and ceilings of a comparison, measured once per seed and kept in the comparison's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tavq_plugin.evaluation.evaluate import score_codes
from tavq_plugin.evaluation.floors.features import CEILINGS, floors
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.results import RunResults, load_results, save_results
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json

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
        of_seed = _saved_floors(folder, seed, settings)
        if of_seed is None:
            ceilings = {CEILING: CEILINGS[CEILING]} if seed == seeds[0] else {}
            of_seed = FloorResults({}, {}, {})
            for floor in floors(
                targets.corpus.images[: len(targets.probe_rows)], targets.corpus.images[targets.corpus.n_train :],
                codes=codes, grid=grid, seed=seed, transport_images=targets.transport_images,
                untrained=None if untrained is None else partial(untrained, seed), weights=weights,
                tell=of_seed.left_out.__setitem__, ceilings=ceilings,
            ):  # fmt: skip
                if seed != seeds[0] and floor.name not in DRAWN:
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


def _saved_floors(folder: Path, seed: int, settings: Mapping[str, Any]) -> FloorResults | None:
    """The floors of a seed that were measured with the same settings; None if one of them is not there."""
    about = read_json(folder / f"seed{seed}.json", strict=False)
    if not isinstance(about, dict) or about.get("settings") != settings:
        return None
    runs: dict[str, dict[int, RunResults]] = {}
    for name in about["titles"]:
        results = load_results(folder / name / f"seed{seed}", {**settings, "floor": name})
        if results is None:
            return None
        runs[name] = {seed: results}
    return FloorResults(runs, about["titles"], about["left_out"])


def _joined(first: FloorResults, second: FloorResults) -> FloorResults:
    """The floors of both; a floor of both keeps its first title."""
    runs = {name: first.runs.get(name, {}) | second.runs.get(name, {}) for name in (*first.runs, *second.runs)}
    return FloorResults(runs, second.titles | first.titles, first.left_out | second.left_out)
