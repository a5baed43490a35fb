"""The floors and ceilings of a comparison, measured once per seed and kept in the comparison's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """What was measured of the floors, by name."""

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
        targets: Texts and images.
        judges: The networks that judge reconstructions.
        folder: Where results are kept, one folder per floor and seed.
        codes: Number of codes of the clustered floors.
        grid: Places per side of patch k-means.
        seeds: Of the clustered floors; the other floors take the first.
        untrained: Builds an untrained tokenizer from a seed. None: that floor is left out.
        weights: Folder with weights of the ceiling's network.
        settings: What results depend on, beside codes and grid; results of other settings are measured anew.
        report: Called with "floors", the number of seeds done and their total.
    """
    settings = {**settings, "floors": {"codes": codes, "grid": grid, "weights": weights is not None}}
    corpus, found = targets.corpus, FloorResults({}, {}, {})
    for number, seed in enumerate(seeds):
        report("floors", number, len(seeds))
        about = read_json(folder / f"seed{seed}.json", strict=False)
        if isinstance(about, dict) and about.get("settings") == settings and _read(found, folder, seed, about):
            continue
        left_out: dict[str, str] = {}
        titles: dict[str, str] = {}
        build = None if untrained is None else lambda seed=seed: untrained(seed)
        for floor in floors(
            corpus.images[: len(targets.probe_rows)], corpus.images[corpus.n_train :], codes=codes, grid=grid,
            seed=seed, transport_images=targets.transport_images, untrained=build, weights=weights,
            tell=left_out.__setitem__, ceilings={CEILING: CEILINGS[CEILING]} if seed == seeds[0] else {},
        ):  # fmt: skip
            if seed != seeds[0] and floor.name not in DRAWN:
                continue
            results = score_codes(floor.train, floor.held_out, [floor.codes], targets, judges)
            save_results(folder / floor.name / f"seed{seed}", results, {**settings, "floor": floor.name})
            titles[floor.name] = floor.title
        about = {"settings": settings, "titles": titles, "left_out": left_out}
        save_json(folder / f"seed{seed}.json", about)
        _read(found, folder, seed, about)
    report("floors", len(seeds), len(seeds))
    return found


def _read(found: FloorResults, folder: Path, seed: int, about: Mapping[str, Any]) -> bool:
    """Add the saved floors of a seed to `found`; False, and nothing added, if one of them is not there."""
    saved: dict[str, RunResults] = {}
    for name in about["titles"]:
        results = load_results(folder / name / f"seed{seed}", {**about["settings"], "floor": name})
        if results is None:
            return False
        saved[name] = results
    for name, results in saved.items():
        found.runs.setdefault(name, {})[seed] = results
    found.titles.update(about["titles"] | found.titles)
    found.left_out.update(about["left_out"])
    return True
