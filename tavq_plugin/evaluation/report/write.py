"""The report of a comparison: figures, a Markdown table and one page that needs nothing but itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tavq_plugin.evaluation.aggregate import told_by_codes
from tavq_plugin.evaluation.evaluate import Measured, Texts
from tavq_plugin.evaluation.metrics.cards import HEADLINE
from tavq_plugin.evaluation.metrics.codebook import code_counts
from tavq_plugin.evaluation.report import figures
from tavq_plugin.evaluation.report.tables import LEGEND, every_metric, lines_of, markdown
from tavq_plugin.io.atomic import save_text

PICTURES = {
    "reconstructions.png": "Held-out images, and what each method makes of them (first seed)",
    "curves.png": "Training: mean over seeds, smoothed",
    "usage.png": "How often each code of the decoder's level occurs in the held-out images (first seed)",
}


def write_report(
    content: dict[str, Any], runs: Mapping[str, Mapping[int, Measured]], texts: Texts, out: Path
) -> list[Path]:
    """Write compare.md, compare.html and the figures into `out`; -> their paths."""
    first = {name: seeds[min(seeds)] for name, seeds in runs.items()}
    histories = {
        name: [figures.history_of(out / name / f"seed{seed}") for seed in sorted(seeds)] for name, seeds in runs.items()
    }
    shown = next(iter(first.values())).kept["shown"]
    corpus = texts.corpus
    figures.reconstructions(
        corpus.images[corpus.n_train :][: len(shown)],
        {name: measured.kept["shown"] for name, measured in first.items()},
        out / "reconstructions.png",
    )
    figures.curves(histories, out / "curves.png")
    figures.usage(
        {name: code_counts(m.kept["held_out_indices"], int(m.kept["codes"])) for name, m in first.items()},
        out / "usage.png",
    )
    told = {name: told_by_codes(measured, texts) for name, measured in first.items()}
    save_text(out / "compare.md", markdown(content))
    save_text(out / "compare.html", page(content, told, {name: (out / name).read_bytes() for name in PICTURES}))
    return [out / name for name in ("compare.md", "compare.html", *PICTURES)]


def page(content: Mapping[str, Any], told: Mapping[str, list[dict[str, Any]]], pictures: Mapping[str, bytes]) -> str:
    """The page: tables, cards, figures as data URIs; escaped throughout, no script, nothing from elsewhere."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(f'the page needs jinja2 ({error}): pip install "tavq-plugin[report]"') from error
    loader = PackageLoader("tavq_plugin.evaluation", "report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    uris = [
        (title, "data:image/png;base64," + base64.b64encode(pictures[name]).decode())
        for name, title in PICTURES.items()
        if name in pictures
    ]
    return made.get_template("compare.html.j2").render(
        content=content,
        protocol=content["protocol"],
        headline=lines_of(content, HEADLINE),
        lines=lines_of(content, every_metric(content)),
        legend=LEGEND,
        told=told,
        pictures=uris,
        as_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )
