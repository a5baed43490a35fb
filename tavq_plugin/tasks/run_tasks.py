"""`tavq task`: run tasks on the codes of several runs, keep every result, and write the tables and the page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import log2
from pathlib import Path
from typing import Any

import torch

from tavq_plugin.evaluation.protocol import commit, versions
from tavq_plugin.evaluation.report.tasks_slot import place_tasks
from tavq_plugin.evaluation.sources.read_sources import Source, UserTokenizer, refuse_images
from tavq_plugin.evaluation.sources.source_checks import refuse_out_among
from tavq_plugin.io.atomic import save_json, writable
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.networks.weights import files_of, require_known_hashes
from tavq_plugin.tasks.encode_runs import encode_run
from tavq_plugin.tasks.fit_model import MAKER
from tavq_plugin.tasks.task import EncodedRun, Task, TaskResult, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.tasks.task_overrides import changed_settings
from tavq_plugin.tasks.task_results import checked_result, load_result, save_result
from tavq_plugin.tasks.task_statistics import task_statistics
from tavq_plugin.text.encoder import TextEncoder

VERSION = 2  # of what the results mean; results of another version are made anew
FILES = ("tasks.json", "tasks.md", "tasks.html", "tasks.png", "tokens/", "results/", "models/")


@dataclass(frozen=True)
class Reporting:
    """Who is told what happens; by default nobody."""

    tell: Callable[[str], None] = lambda message: None  #: each message for the user
    started: Callable[[str, int], None] = lambda label, number: None  #: a task of a run, and the number of all
    finished: Callable[[str], None] = lambda label: None
    progress: Callable[[str, int, int], None] = lambda name, done, total: None  #: of a model, or of encoding


@dataclass(frozen=True)
class TaskPlan:
    """What is run on what. Raises ValueError, by name, for what cannot be run."""

    tasks: Mapping[str, Task]
    sources: Sequence[Source]
    data: TaskData
    out: Path
    baseline: str | None = None  #: the run that others are compared with. None: the first
    quick: bool = False  #: few steps
    levels: str = "final"  #: which codes become tokens: "final" or "all"
    steps: int | None = None  #: of every model. None: each task's own
    overrides: Sequence[str] = ()  #: settings of every task, such as "model.width=64"
    weights: Path | None = None  #: folder of the weights of judging networks
    comparisons: Sequence[Path] = ()  #: folders of comparisons whose pages get a section with the results
    settings: Mapping[str, TaskSettings] = field(init=False)  #: of each task
    unfit: Mapping[str, str] = field(init=False)  #: task → why the data cannot serve it

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(source.name for source in self.sources))
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"--baseline {self.baseline}: no run has this name; give one of {', '.join(names)}")
        if self.weights is not None and not Path(self.weights).is_dir():
            raise FileNotFoundError(f"no folder {self.weights}: --weights takes a folder of weights files")
        require_known_hashes(self.weights)
        refuse_out_among(self.out, self.sources)
        side = self.data.train.images.shape[-1]
        for source in self.sources:
            if isinstance(source, UserTokenizer):
                refuse_images(source, side)
            elif source.recipe.resolution != side:
                raise ValueError(
                    f"{source.origin} was trained at {source.recipe.resolution} px, and these images have {side}: give "
                    "runs of one resolution"
                )
        settings = {name: self._settings_of(task) for name, task in self.tasks.items()}
        unfit = {name: why for name, task in self.tasks.items() if (why := task.unfit(self.data))}
        if unfit.keys() == self.tasks.keys():
            raise ValueError("; ".join(f"{name}: {why}" for name, why in unfit.items()))
        object.__setattr__(self, "baseline", self.baseline or (names[0] if names[1:] else None))
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "unfit", unfit)

    def _settings_of(self, task: Task) -> TaskSettings:
        settings = task.settings(quick=self.quick)
        if self.steps is not None:
            settings = replace(settings, fit=replace(settings.fit, steps=self.steps))
        return changed_settings(settings, self.overrides)


def run_tasks(
    plan: TaskPlan, *, encoder: TextEncoder | None = None, reporting: Reporting | None = None
) -> dict[str, Any]:
    """Run the tasks, and write tasks.json, tasks.md and tasks.html; returns the content of the first.

    Every result is kept in `plan.out`, with all that it depends on, so the same command resumes. A task whose training
    breaks for one run is listed under "failed", and the others go on.

    Args:
        plan: What is run on what.
        encoder: Encodes the texts. Default: `offline_encoder()`.
        reporting: Who is told what happens. Default: nobody.

    Raises:
        ValueError: A run cannot be encoded, or its tokens in `plan.out` are of another tokenizer.
        FileExistsError: A file that we did not write is in the way.
    """
    from tavq_plugin.io.page_template import page_template
    from tavq_plugin.tasks.report.write_tasks import TEMPLATES, section, write_tasks
    from tavq_plugin.text.encoder import offline_encoder

    reporting = reporting or Reporting()
    refuse_taken(plan.out, FILES, MAKER)
    page_template(*TEMPLATES, "tasks.html.j2")  # raises now, rather than after hours, if jinja2 is missing
    encoder = encoder or offline_encoder()
    claim(writable(plan.out), FILES, MAKER)
    results: dict[str, dict[str, dict[int, TaskResult]]] = {name: {} for name in plan.tasks if name not in plan.unfit}
    failed: dict[str, dict[str, str]] = {}
    about_runs: dict[str, Any] = {}
    for source in plan.sources:
        run = _encoded(source, plan, reporting)
        about_runs[f"{source.name}, seed {source.seed}"] = _about_run(source, run)
        for name in results:
            label = f"{name} on {source.name}, seed {source.seed}"
            reporting.started(label, len(results) * len(plan.sources))
            try:
                result = _result(name, run, plan, encoder, reporting)
                results[name].setdefault(source.name, {})[source.seed] = result
            except (FloatingPointError, ImportError) as error:
                failed.setdefault(name, {})[f"{source.name}, seed {source.seed}"] = str(error)
            reporting.finished(label)
    content = {
        "tasks": {name: _task_content(name, plan, results.get(name, {})) for name in plan.tasks},
        "failed": failed,
        "protocol": _protocol(plan, encoder, about_runs),
    }
    save_json(plan.out / "tasks.json", content)
    write_tasks(content, results, plan.out)
    for folder in plan.comparisons:
        reporting.tell(f"{place_tasks(folder, section(content, results))} has these results as a section")
    return content


def save_copy(content: Mapping[str, Any], file: Path) -> None:
    """Write the content of tasks.json to another file. Raises FileExistsError if we did not write that file."""
    claim(file.parent, (file.name,), MAKER)
    save_json(file, content)


def _encoded(source: Source, plan: TaskPlan, reporting: Reporting) -> EncodedRun:
    label = f"{source.name}, seed {source.seed}"
    return encode_run(
        source,
        plan.data,
        plan.out / "tokens" / source.name / f"seed{source.seed}",
        levels=plan.levels,
        tell=reporting.tell,
        progress=lambda done, total: reporting.progress(f"encoding with {label}", done, total),
    )


def _result(name: str, run: EncodedRun, plan: TaskPlan, encoder: TextEncoder, reporting: Reporting) -> TaskResult:
    """The result of one task for one run: as it was kept, else made and kept."""
    place = Path(run.name) / f"seed{run.seed}"
    folder = plan.out / "results" / name / place
    settings = {
        "version": VERSION,
        "tokens": [run.train.fingerprint, run.held_out.fingerprint],
        "heads": _hash_of_heads(run.align),
        "data": plan.data.fingerprint,
        "task": asdict(plan.settings[name]),
        "encoder": encoder.fingerprint,
        "weights": files_of(plan.weights),
    }
    result = load_result(folder, settings)
    if result is None:
        models = plan.out / "models"
        at = Workplace(models / place, models / "shared", encoder, reporting.progress, plan.weights)
        result = checked_result(plan.tasks[name].run(run, plan.data, plan.settings[name], at), name)
        save_result(folder, result, settings)
    return result


def _task_content(name: str, plan: TaskPlan, runs: Mapping[str, Mapping[int, TaskResult]]) -> dict[str, Any]:
    """What tasks.json says of a task: its runs with their seeds, and the statistics; or why there are none."""
    if name in plan.unfit:
        return {"unfit": plan.unfit[name]}
    task = plan.tasks[name]
    shown = {
        run: {
            str(seed): {
                "conditions": {label: dict(condition.values) for label, condition in result.conditions.items()},
                "missing": dict(result.missing),
                "protocol": dict(result.protocol),
            }
            for seed, result in seeds.items()
        }
        for run, seeds in runs.items()
    }
    baseline = plan.baseline if plan.baseline in runs else None
    return {
        "main_metric": task.main_metric,
        "smaller_is_better": task.smaller_is_better,
        "settings": asdict(plan.settings[name]),
        "runs": shown,
        **task_statistics(runs, baseline),
    }


def _about_run(source: Source, run: EncodedRun) -> dict[str, Any]:
    layout = run.train.layout
    bits = sum(grid.height * grid.width * log2(grid.codes) for grid in layout.grids)
    grids, heads = [list(grid) for grid in layout.grids], run.align is not None
    return {"origin": source.origin, "tokens": layout.length, "bits": bits, "grids": grids, "heads": heads}


def _protocol(plan: TaskPlan, encoder: TextEncoder, runs: Mapping[str, Any]) -> dict[str, Any]:
    """How all of this was measured."""
    return {
        "data": plan.data.name,
        "data_fingerprint": plan.data.fingerprint,
        "n_train": len(plan.data.train),
        "n_eval": len(plan.data.held_out),
        "resolution": plan.data.train.images.shape[-1],
        "runs": dict(runs),
        "baseline": plan.baseline,
        "levels": plan.levels,
        "quick": plan.quick,
        "encoder": encoder.fingerprint,
        "weights": files_of(plan.weights),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(),
    }


def _hash_of_heads(align: TextAlignment | None) -> str | None:
    if align is None:
        return None
    digest = hashlib.sha256(type(align).__name__.encode())
    for name, value in sorted(align.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
