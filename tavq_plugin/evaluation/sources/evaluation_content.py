"""The content of evaluate.json: as of a comparison, with what a reader must know about each tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tavq_plugin.evaluation.aggregate import reference_of, summarise
from tavq_plugin.evaluation.floors.floor_results import FloorResults
from tavq_plugin.evaluation.headline import headline_sentence
from tavq_plugin.evaluation.metrics.cards import BY_LEVEL
from tavq_plugin.evaluation.protocol import measured_cards, measurement_protocol
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.sources.read_sources import Source, UserTokenizer
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.io.atomic import read_json

UNTRAINED = (
    "tavq.wrap added levels 1 and 2 for this evaluation, and nobody trained them; level 3 is the tokenizer's own"
)
FLATTERED = (
    "image→text retrieval through the heads that were trained with the tokenizer; it flatters its own method, so it "
    "cannot be compared with the probes above"
)
NO_TIME = "tavq evaluate trains nothing, so it cannot give every tokenizer the same time"


def evaluation_content(
    sources: Sequence[Source],
    runs: Mapping[str, Mapping[int, RunResults]],
    failed: Mapping[str, str],
    floors: FloorResults,
    targets: TextTargets,
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """Content of evaluate.json: that of a comparison, with `notes` on the sources and the recall of `own_heads`."""
    first = next((source.name for source in sources if isinstance(source, UserTokenizer) and source.name in runs), None)
    reference = first if first and len(runs) > 1 else reference_of(runs)  # what the user asks about
    content = summarise(runs, targets, reference=reference, floors=floors.runs, equal_time=NO_TIME)
    for name, reasons in _reasons_for_levels(content["methods"], sources).items():
        content["absent"][name] |= reasons
    about: dict[str, Any] = {"reference": reference, "floors": floors.titles, "floors_left_out": floors.left_out}
    about |= {"cards": measured_cards(content, protocol)}
    content |= {"protocol": {**protocol, **about}, "failed": dict(failed)}
    content["headline"] = headline_sentence(content)
    content["own_heads"] = {
        name: {str(seed): results.artifacts["own_heads"].tolist() for seed, results in seeds.items()}
        for name, seeds in runs.items()
        if all("own_heads" in results.artifacts for results in seeds.values())
    }
    content["notes"] = _notes(sources, protocol["split"], content["own_heads"])
    if "untrained" in floors.runs and all(isinstance(source, UserTokenizer) for source in sources):
        content["notes"].append("The floor `untrained` is the encoder of the recipe `small`, because no run was given.")
    return content


def _reasons_for_levels(
    methods: Mapping[str, Mapping[str, Any]], sources: Sequence[Source]
) -> dict[str, dict[str, str]]:
    """Why each plain host lacks the metrics of levels 1 and 2: {name: {metric: reason}}."""
    metrics = {metric for table in methods.values() for metric in table}
    metrics |= {f"{name}_{level}" for name in BY_LEVEL for level in (1, 2, 3)}
    of_all = {metric.removesuffix("_1") for metric in metrics if metric.endswith("_1")}
    of_all |= {"masked_word", "masked_word_gain", "similarity_mse"}
    on_added = {metric for metric in metrics if metric.endswith(("_1", "_2")) or metric in of_all}
    return {
        source.name: dict.fromkeys(sorted(on_added - methods[source.name].keys()), UNTRAINED)
        for source in sources
        if source.name in methods and isinstance(source, UserTokenizer) and not source.loaded.own_levels
    }


def _notes(sources: Sequence[Source], split: str, own_heads: Mapping[str, Any]) -> list[str]:
    """What a reader must know about the sources, as sentences."""
    own = [source for source in sources if isinstance(source, UserTokenizer)]
    notes = [f"{source.name}: {UNTRAINED}." for source in own if not source.loaded.own_levels]
    if own:
        names = ", ".join(source.name for source in own)
        notes.append(f"It is not known whether {names} saw the images of the {split} split in training.")
    for name, seeds in own_heads.items():
        for seed, table in seeds.items():
            levels = "; ".join(
                f"level {number}: R@1 {r1:.1f}, R@10 {r10:.1f}, R@50 {r50:.1f} %"
                for number, (r1, r10, r50) in enumerate(table, 1)
            )
            notes.append(f"{name}, seed {seed}, {FLATTERED}: {levels}.")
    return notes


def evaluation_protocol(
    sources: Sequence[Source], targets: TextTargets, folder: Path, weights: Path | None
) -> dict[str, Any]:
    """What the numbers depend on."""
    about, corpus = read_json(folder / "corpus.json"), targets.corpus
    return {
        "data": about["asked"]["data"],
        **about["protocol"],
        "split": corpus.split,
        "n_train": corpus.n_train,
        "n_eval": len(corpus.held_out_rows),
        "methods": list(dict.fromkeys(source.name for source in sources)),
        "seeds": sorted({source.seed for source in sources}),
        "sources": {f"{source.name}, seed {source.seed}": source.origin for source in sources},
        "recipe": {"resolution": corpus.images.shape[-1]},
        **measurement_protocol(targets, weights),
        "images": "all share the held-out images, and the training images of the probes",
        "threads": torch.get_num_threads(),
    }
