"""Write the report of `tavq task`: Markdown, what fits a terminal, and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from einops import rearrange
from PIL import Image
from torch import Tensor

from tavq_plugin.evaluation.report.markdown import joined, table_parts
from tavq_plugin.io.atomic import save_text
from tavq_plugin.io.page_template import page_template
from tavq_plugin.tasks.report.sample_picture import sample_picture
from tavq_plugin.tasks.report.task_tables import overview, protocol_line, task_tables
from tavq_plugin.tasks.task import TaskResult

TEMPLATES = ("tavq_plugin.tasks", "report")  # package and folder
SAMPLES = 8  # rows of samples that the page shows per task, at most
Results = Mapping[str, Mapping[str, Mapping[int, TaskResult]]]  # task → run → seed


def write_tasks(content: Mapping[str, Any], results: Results, out: Path) -> list[Path]:
    """Write tasks.md, tasks.html and, if a task has samples, tasks.png; returns their paths.

    Samples are those of each run's first seed.
    """
    save_text(out / "tasks.md", markdown(content))
    save_text(out / "tasks.html", page(content, results))
    drawn = sample_picture(results, out / "tasks.png")
    return [out / "tasks.md", out / "tasks.html", *([out / "tasks.png"] if drawn else [])]


def markdown(content: Mapping[str, Any]) -> str:
    """The whole report as Markdown, without the samples."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\<", joined(_parts(content, short=False)))  # no HTML from data


def terminal(content: Mapping[str, Any]) -> str:
    """The first tables of the report: all tasks at a glance, and the conditions of each."""
    return joined(_parts(content, short=True))


def _parts(content: Mapping[str, Any], *, short: bool) -> Iterator[str]:
    """Paragraphs and tables."""
    yield "# What the codes are good for"
    yield protocol_line(content)
    yield from table_parts(overview(content))
    for task in task_tables(content):
        yield f"## {task.name}"
        if task.unfit:
            yield f"Not run: {task.unfit}"
        for table in task.tables[: 1 if short else None]:
            yield f"{table.title}:"
            yield from table_parts(table)
        yield "\n".join(f"- {sentence}" for sentence in task.missing)


def page(content: Mapping[str, Any], results: Results) -> str:
    """The HTML page: tables, and samples side by side as data URIs. All text is escaped; no scripts, no links out."""
    return page_template(*TEMPLATES, "tasks.html.j2").render(
        **_section_values(content, results),
        data=content["protocol"]["data"],
        protocol={"protocol": content["protocol"], **_task_protocols(content)},
        as_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )


def section(content: Mapping[str, Any], results: Results) -> str:
    """The same tables and samples as a section of the page of a comparison."""
    made = page_template(*TEMPLATES, "tasks_section.html.j2").render(**_section_values(content, results))
    return f'<section>\n<h2 id="tasks">What the codes are good for</h2>\n{made}</section>\n'


def sample_rows(runs: Mapping[str, Mapping[int, TaskResult]]) -> list[dict[str, Any]]:
    """What was given, and what the first seed of each run made of it: {"given", "truth", "runs": [{"name", …}]}."""
    first = {name: seeds[min(seeds)].samples for name, seeds in runs.items()}
    rows = []
    for number in range(min([SAMPLES, *map(len, first.values())])):
        each = {name: samples[number] for name, samples in first.items()}
        of_runs = [
            {"name": name, "images": list(map(data_uri, sample.images)), "text": sample.text}
            for name, sample in each.items()
        ]
        shown = next(iter(each.values()))
        rows.append({"given": shown.given, "truth": shown.truth, "runs": of_runs})
    return rows


def data_uri(image: Tensor) -> str:
    """An image as the address of a PNG that holds itself; 3 h w uint8."""
    file = BytesIO()
    Image.fromarray(rearrange(image, "c h w -> h w c").contiguous().numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _section_values(content: Mapping[str, Any], results: Results) -> dict[str, Any]:
    return {
        "protocol_line": protocol_line(content),
        "baseline": content["protocol"]["baseline"],
        "overview": overview(content),
        "tasks": task_tables(content),
        "samples": {name: sample_rows(runs) for name, runs in results.items()},
    }


def _task_protocols(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of each task, and the protocol of each of its runs."""
    found = {}
    for name, task in content["tasks"].items():
        if "unfit" not in task:
            each = {(run, seed): part for run, seeds in task["runs"].items() for seed, part in seeds.items()}
            runs = {f"{run}, seed {seed}": part["protocol"] for (run, seed), part in each.items()}
            found[name] = {"settings": task["settings"], **runs}
    return found
