"""The content of evaluate.json: that of a comparison, with what a reader must know about each tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tavq_plugin.evaluation.aggregate import reference_of, summarise
from tavq_plugin.evaluation.floors.floor_results import FloorResults
from tavq_plugin.evaluation.headline import headline_sentence
from tavq_plugin.evaluation.metrics.cards import BY_LEVEL, card_of
from tavq_plugin.evaluation.protocol import commit, versions
from tavq_plugin.evaluation.results import RunResults
from tavq_plugin.evaluation.sources.read_sources import Source, UserTokenizer
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.io.atomic import read_json
from tavq_plugin.networks.weights import files_of

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
    found: FloorResults,
    targets: TextTargets,
    protocol: dict[str, Any],
) -> dict[str, Any]:
    """Content of evaluate.json: that of a comparison, with `notes` on the sources and the recall of `own_heads`."""
    first = next((source.name for source in sources if isinstance(source, UserTokenizer) and source.name in runs), None)
    reference = first if first and len(runs) > 1 else reference_of(runs)  # what the user asks about
    content = summarise(runs, targets, reference=reference, floors=found.runs, equal_time=NO_TIME)
    _explain_levels(content, sources)
    tables = (*content["methods"].values(), *content["floors"].values())
    measured_on = {name: protocol[name] for name in ("data", "split", "n_eval", "seeds")}
    cards = {metric: {**card_of(metric).to_dict(), **measured_on} for table in tables for metric in table}
    protocol |= {"reference": reference, "floors": found.titles, "floors_left_out": found.left_out, "cards": cards}
    content |= {"protocol": protocol, "failed": dict(failed)}
    content["headline"] = headline_sentence(content)
    content["own_heads"] = {
        name: {str(seed): results.artifacts["own_heads"].tolist() for seed, results in seeds.items()}
        for name, seeds in runs.items()
        if all("own_heads" in results.artifacts for results in seeds.values())
    }
    content["notes"] = _notes(sources, protocol["split"], content["own_heads"])
    if "untrained" in found.runs and all(isinstance(source, UserTokenizer) for source in sources):
        content["notes"].append("The floor untrained is the encoder of the recipe `small`, as no run was given.")
    return content


def _explain_levels(content: Mapping[str, Any], sources: Sequence[Source]) -> None:
    """Add to "absent" why a plain host lacks what rests on levels 1 and 2."""
    metrics = {metric for table in content["methods"].values() for metric in table}
    metrics |= {f"{name}_{level}" for name in BY_LEVEL for level in (1, 2, 3)}
    of_all = {metric.removesuffix("_1") for metric in metrics if metric.endswith("_1")}
    of_all |= {"masked_word", "masked_word_gain", "similarity_mse"}
    on_added = {metric for metric in metrics if metric.endswith(("_1", "_2")) or metric in of_all}
    for source in sources:
        table = content["methods"].get(source.name)
        if table is not None and isinstance(source, UserTokenizer) and not source.loaded.own_levels:
            content["absent"][source.name] |= dict.fromkeys(sorted(on_added - table.keys()), UNTRAINED)


def _notes(sources: Sequence[Source], split: str, own_heads: Mapping[str, Any]) -> list[str]:
    """What a reader must know about the sources, as sentences."""
    own = [source for source in sources if isinstance(source, UserTokenizer)]
    notes = [f"{source.name}: {UNTRAINED}." for source in own if not source.loaded.own_levels]
    if own:
        names = ", ".join(source.name for source in own)
        notes.append(f"Whether {names} saw the images of the {split} split in training cannot be known from here.")
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
        "commit": commit(),
        "methods": list(dict.fromkeys(source.name for source in sources)),
        "seeds": sorted({source.seed for source in sources}),
        "sources": {f"{source.name}, seed {source.seed}": source.origin for source in sources},
        "recipe": {"resolution": corpus.images.shape[-1]},
        "measuring": {
            "words": len(targets.top_words),
            "probe_rows": len(targets.probe_rows),
            "transported": len(targets.transport_images),
        },
        "weights": files_of(weights),
        "chance": "each text metric with the texts dealt at random among the held-out images, mean of "
        f"{targets.settings.permutations} deals, stored beside each value",
        "spread": "standard deviation over seeds; none for one seed",
        "significance": "random effects of seeds and images (crossed), t test over seeds where there is no value per "
        "image; two-sided, p adjusted over the methods by Holm; no test below three seeds",
        "images": "all share the held-out images, and the training images of the probes",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
