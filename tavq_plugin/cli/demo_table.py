"""The table that `tavq demo` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

LEVELS = ("level1", "level2", "level3")


def table(content: dict[str, Any]) -> Table:
    """The runs side by side, headline metrics first."""
    protocol, runs = content["protocol"], content["runs"]
    chance = protocol["chance"]
    shown = Table(
        title=f"{protocol['data']}, {protocol['resolution']} px, {protocol['steps']} steps, seed {protocol['seed']}: "
        f"{protocol['n_train']} train, {protocol['n_eval']} held out"
    )
    shown.add_column("", no_wrap=True)
    for name in runs:
        shown.add_column(name, justify="right", no_wrap=True)

    def row(label: str, cell: Callable[[dict[str, Any]], str]) -> None:
        shown.add_row(label, *map(cell, runs.values()))

    def by_level(recall: dict[str, dict[str, float]] | None, k: str) -> list[float | None]:
        return [recall[level][k] if recall else None for level in LEVELS]

    row("word mAP, fitted", lambda run: _mean([run["word_map"][level] for level in LEVELS]))
    row("  level 1 2 3", lambda run: _each([run["word_map"][level] for level in LEVELS]))
    row(f"R@50, fitted (chance {chance['r50']:.0f})", lambda run: _mean(by_level(run["retrieval_fitted"], "r50")))
    row("  level 1 2 3", lambda run: _each(by_level(run["retrieval_fitted"], "r50")))
    row(f"R@10, own head (chance {chance['r10']:.0f})", lambda run: _each(by_level(run["retrieval"], "r10")))
    row(f"R@50, own head (chance {chance['r50']:.0f})", lambda run: _each(by_level(run["retrieval"], "r50")))
    row("PSNR, dB", lambda run: f"{run['psnr']:.2f} ± {run['psnr_standard_error']:.2f}")
    row("codebook usage, %", lambda run: f"{run['usage']:.2f}")
    row("perplexity", lambda run: f"{run['perplexity']:.2f}")
    row("plan entropy / max", lambda run: _each(run["plan_entropy"], digits=2))
    row("seconds per step", lambda run: f"{run['seconds_per_step']:.3f}")
    row("plug-in, % of step", lambda run: f"{100 * run['plugin_share']:.2f}")
    return shown


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if len(known) == len(values) else "–"


def _each(values: Sequence[float | None], *, digits: int = 1) -> str:
    return "–" if None in values else " ".join(f"{value:.{digits}f}" for value in values)
