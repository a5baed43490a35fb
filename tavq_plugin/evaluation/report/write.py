"""The report of a comparison: pictures, a Markdown table and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tavq_plugin.evaluation.aggregate import Runs, most_informative_codes
from tavq_plugin.evaluation.metrics.cards import HEADLINE
from tavq_plugin.evaluation.metrics.codebook import code_counts
from tavq_plugin.evaluation.report import figures
from tavq_plugin.evaluation.report.comparison_table import LEGEND, every_metric, lines_of, markdown
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.io.atomic import save_text

PICTURES = {
    "reconstructions.png": "Held-out images and each method's reconstructions (first seed)",
    "curves.png": "Training: mean over seeds, smoothed",
    "usage.png": "How often each code of the decoder's level occurs in the held-out images (first seed)",
}


def write_report(content: dict[str, Any], runs: Runs, targets: TextTargets, out: Path) -> list[Path]:
    """Write compare.md, compare.html and the pictures into `out`; returns their paths."""
    first = {name: seeds[min(seeds)] for name, seeds in runs.items()}
    histories = {
        name: [figures.history_of(out / name / f"seed{seed}") for seed in sorted(seeds)] for name, seeds in runs.items()
    }
    shown = next(iter(first.values())).artifacts["shown"]
    corpus = targets.corpus
    figures.reconstructions(
        corpus.images[corpus.n_train :][: len(shown)],
        {name: results.artifacts["shown"] for name, results in first.items()},
        out / "reconstructions.png",
    )
    figures.curves(histories, out / "curves.png")
    figures.usage(
        {
            name: code_counts(results.artifacts["held_out_indices"], int(results.artifacts["codes"]))
            for name, results in first.items()
        },
        out / "usage.png",
    )
    codes = {name: most_informative_codes(results, targets) for name, results in first.items()}
    save_text(out / "compare.md", markdown(content))
    save_text(out / "compare.html", page(content, codes, {name: (out / name).read_bytes() for name in PICTURES}))
    return [out / name for name in ("compare.md", "compare.html", *PICTURES)]


def page(content: Mapping[str, Any], codes: Mapping[str, list[dict[str, Any]]], pictures: Mapping[str, bytes]) -> str:
    """The HTML page: tables, cards, pictures as data URIs. All text is escaped; no scripts, no external resources."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(f'the page needs jinja2 ({error}): pip install "tavq-plugin[report]"') from error
    loader = PackageLoader("tavq_plugin.evaluation", "report")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    uris = [
        (title, "data:image/png;base64," + base64.b64encode(pictures[name]).decode())
        for name, title in PICTURES.items()
        if name in pictures
    ]
    return templates.get_template("compare.html.j2").render(
        content=content,
        protocol=content["protocol"],
        headline=lines_of(content, HEADLINE),
        lines=lines_of(content, every_metric(content)),
        legend=LEGEND,
        codes=codes,
        pictures=uris,
        as_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )
