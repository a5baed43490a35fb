"""The README of a published run, written from what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from tavq_plugin.evaluation.metrics.cards import CARDS
from tavq_plugin.evaluation.sources.finished_runs import FinishedRun
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json
from tavq_plugin.use.run_data import SCENES, data_of_run

PROTOCOL = ("probe", "retrieval", "word_map", "word_mass", "psnr", "stored", "spread", "encoder")  # of the demo's
CONTROLS = ("lambda-0", "shuffled", "vqgan", "tavq-shuffled", "tavq-uniform-plan", "tavq-weighted-sum")


def model_card(
    source: FinishedRun, metrics: Mapping[str, Any], tokenizer: Tokenizer, *, licence: str | None = None
) -> ModelCard:
    """Data, protocol, metrics with chance and spread, and controls of a run, as the hub's README.

    Without a licence, the card asks for one: a run carries the terms of its host's weights and of its data.
    """
    recipe, data = source.recipe, data_of_run(source)
    name = data.name if data.name == SCENES else Path(data.name).name
    head = ["---", "library_name: tavq-plugin", "tags: [tavq-plugin, image-tokenizer, vector-quantization]"]
    head += [f"license: {licence}"] if licence else ["license: other", "license_name: to-be-filled-in"]
    lines = [*head, "---", f"# {source.name}, seed {source.seed}", ""]
    lines += [
        f"An image tokenizer whose codes were trained by the method `{recipe.method}` of tavq-plugin (TA-VQ, [arXiv "
        "2503.01261](https://arxiv.org/abs/2503.01261)).",
        "",
        "```python",
        "import tavq_plugin as tavq",
        'run = tavq.load("FOLDER")  # or Run.from_pretrained("OWNER/NAME") from tavq_plugin.use.run',
        "```",
        "",
        "## Licence",
        "",
        f"{licence}."
        if licence
        else "**To be filled in.** The weights carry the terms of the host that training started from, of the images "
        "and of the texts. Set `license:` at the top of this file to what all of these allow.",
        "",
        "## Training",
        "",
        f"- Host: `{recipe.host.target}`, {recipe.resolution} × {recipe.resolution} px; {tokenizer}",
        f"- {recipe.steps:,} steps of {recipe.batch_size} images, learning rate {recipe.optimizer.learning_rate:g}, "
        f"seed {recipe.seed}",
        f"- Method `{recipe.method}`, options `{recipe.options}`",
        f"- Data: {name or 'not recorded'}, {data.n_train:,} training images",
        "",
    ]
    lines += ["## What was measured", "", *_metric_table(metrics), ""]
    protocol = read_json(source.folder / "settings.json", strict=False) or {}
    stated = [f"- {key}: {protocol[key]}" for key in PROTOCOL if isinstance(protocol.get(key), str)]
    split = protocol.get("split", "tune")
    lines += ["### Protocol", "", f"- held-out images: the {split} split, {data.n_eval:,} at most", *stated]
    lines += ["- spread: one run of one seed; `±` is the spread of chance over permutations of the texts", ""]
    lines += ["## Controls", "", *_controls(source), ""]
    return ModelCard("\n".join(lines))


def _metric_table(metrics: Mapping[str, Any]) -> list[str]:
    """A row for each number, with its unit and chance where these are known."""
    chance = metrics.get("chance") or {}
    rows = [(name, value) for name, value in metrics.items() if name not in ("chance", "stored")]
    rows += [(f"stored {name}", value) for name, value in (metrics.get("stored") or {}).items()]
    if not rows:
        return ["Nothing was measured in this run's folder: `tavq evaluate RUN` measures it."]
    lines = ["| metric | unit | value | chance |", "|---|---|---|---|"]
    for name, value in rows:
        base = name.removeprefix("stored ")
        known = CARDS.get(base) or CARDS.get(base.rpartition("_")[0])
        unit = getattr(known, "unit", "") or ""
        lines.append(f"| {name} | {unit} | {_shown(value)} | {_shown_chance(chance.get(base))} |")
    return lines


def _shown(value: Any) -> str:
    """A number, or numbers by level, with four digits."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown_chance(chance: Any) -> str:
    if chance is None:
        return "–"
    if isinstance(chance, list | tuple) and len(chance) == 2:
        return f"{chance[0]:.4g} ± {chance[1]:.2g}"
    return _shown(chance)


def _controls(source: FinishedRun) -> list[str]:
    """What the runs beside this one say: the verdict of a demo, the sentence of a comparison, or their names."""
    demo = read_json(source.folder.parent / "demo.json", strict=False)
    if isinstance(demo, Mapping) and isinstance(demo.get("verdict"), Mapping):
        return [str(demo["verdict"].get("sentence", ""))]
    comparison = source.folder.parent.parent
    compared = read_json(comparison / "compare.json", strict=False)
    if isinstance(compared, Mapping) and compared.get("headline"):
        return [str(compared["headline"])]
    beside = sorted({path.parent.name for path in comparison.glob("*/seed*") if (path / "history.json").is_file()})
    found = [name for name in beside if name in CONTROLS and name != source.name]
    if found:
        return [f"Runs of the same data and recipe: {', '.join(found)}. Nobody compared them in this folder."]
    return ["No control was found beside this run, so its numbers do not show what the texts did."]
