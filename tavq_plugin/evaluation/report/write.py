"""The report of a comparison: pictures, Markdown and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tavq_plugin.evaluation.aggregate import Runs, most_informative_codes
from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.metrics.codebook import code_counts
from tavq_plugin.evaluation.report import figures, sections
from tavq_plugin.evaluation.report.cells import base_of, shown_number
from tavq_plugin.evaluation.report.comparison_table import refuse_former_content
from tavq_plugin.evaluation.report.markdown import markdown
from tavq_plugin.evaluation.report.tasks_slot import BEGIN, END, with_tasks
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.io.atomic import save_text
from tavq_plugin.io.page_template import page_template
from tavq_plugin.io.redacted import with_short_paths

PICTURES = {
    "reconstructions.png": "Held-out images in the first row, and each method's reconstructions below (first seed)",
    "curves.png": "Training: mean over seeds, smoothed",
    "usage.png": "How often each code of level 3 occurs in the held-out images, most used first (first seed)",
}


def write_report(
    content: dict[str, Any], runs: Runs, targets: TextTargets, out: Path, *, name: str = "compare"
) -> list[Path]:
    """Write compare.md, compare.html and the pictures into `out`; returns their paths.

    `name` is that of the files, and of the command. Sentences in the content's "notes" stand below its headline.
    A picture is left out if no run has what it needs: a tokenizer that was trained elsewhere has no training curves.
    Raises ValueError if an older version tabulated the content.
    """
    refuse_former_content(content)
    first = {name: seeds[min(seeds)] for name, seeds in runs.items()}
    pictures = _draw_pictures(runs, targets, out)
    codes = {
        method: most_informative_codes(results, targets)
        for method, results in first.items()
        if "held_out_indices" in results.artifacts
    }
    drawn = {picture: (out / picture).read_bytes() for picture in pictures}
    save_text(out / f"{name}.md", markdown(content))
    save_text(out / f"{name}.html", with_tasks(page(content, codes, drawn, command=f"tavq {name}"), out))
    return [out / file for file in (f"{name}.md", f"{name}.html", *pictures)]


def page(
    content: Mapping[str, Any],
    codes: Mapping[str, list[dict[str, Any]]],
    pictures: Mapping[str, bytes],
    *,
    command: str = "tavq compare",
) -> str:
    """The HTML page: tables, cards, pictures as data URIs. All text is escaped; no scripts, no absolute paths."""
    template = page_template("tavq_plugin.evaluation", "report", "compare.html.j2")
    from markupsafe import Markup  # it comes with jinja2

    refuse_former_content(content)
    content = with_short_paths(content)
    primary, equal_time = sections.primary_tables(content), sections.equal_time_tables(content)
    levels, appendix = sections.level_table(content), sections.appendix_table(content)
    legends = {
        "primary": [sections.legend(content, [table]) for table in primary],
        "equal_time": [sections.legend(content, [table], best=False) for table in equal_time],
        "levels": sections.legend(content, [levels]),
        "appendix": sections.legend(content, [appendix]),
    }
    metrics = sections.metrics_with_cards(content, [*primary, levels, appendix])
    return template.render(
        content={"failed": {}, "notes": [], **content},
        command=command,
        tasks_slot=Markup(f"{BEGIN}{END}"),
        protocol={"reference": None, **content["protocol"]},
        protocol_line=sections.protocol_line(content),
        primary=primary,
        floors=sections.floor_lines(content),
        seeds=sections.seed_tables(content),
        at_chance=sections.lines_at_chance(content),
        levels=levels,
        equal_time=equal_time,
        differences=sections.difference_table(content),
        appendix=appendix,
        legends=legends,
        cards={metric: card_of(metric) for metric in metrics},
        codes=codes,
        pictures=[
            {"title": title, "uri": "data:image/png;base64," + base64.b64encode(pictures[name]).decode()}
            for name, title in PICTURES.items()
            if name in pictures
        ],
        version=content["protocol"].get("versions", {}).get("tavq-plugin", ""),
        base_of=base_of,
        number=shown_number,
        as_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )


def _draw_pictures(runs: Runs, targets: TextTargets, out: Path) -> list[str]:
    """Draw what the runs have; returns the names of the pictures."""
    first = {name: seeds[min(seeds)].artifacts for name, seeds in runs.items()}
    shown = {name: artifacts["shown"] for name, artifacts in first.items() if "shown" in artifacts}
    if shown:
        rows = list(targets.corpus.held_out_rows)[: len(next(iter(shown.values())))]
        figures.reconstructions(targets.corpus.images[rows], shown, out / "reconstructions.png")
    histories = {
        name: [figures.history_of(out / name / f"seed{seed}") for seed in sorted(seeds)]
        for name, seeds in runs.items()
        if all((out / name / f"seed{seed}" / "history.json").exists() for seed in seeds)
    }
    drawn = figures.curves(histories, out / "curves.png")
    counts = {
        name: code_counts(artifacts["held_out_indices"], int(artifacts["codes"]))
        for name, artifacts in first.items()
        if "held_out_indices" in artifacts
    }
    if counts:
        figures.usage(counts, out / "usage.png")
    made = {"reconstructions.png": bool(shown), "curves.png": drawn, "usage.png": bool(counts)}
    return [name for name, is_made in made.items() if is_made]
