"""What was measured of a run, read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tavq_plugin.io.atomic import read_json
from tavq_plugin.use.find_run import hub_config

NOT_METRICS = ("history", "per_image")  # of the demo's metrics.json: long lists


def run_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of a run by name, and "chance": what is reached without the texts; {} if nobody measured the run.

    A run of the demo has the content of metrics.json, one of a comparison that of measured.json; one of `tavq train`
    has the losses of its last step.
    """
    config = hub_config(folder)
    if config is not None:
        return dict(config.get("metrics") or {})
    demo = read_json(folder / "metrics.json", strict=False)
    if isinstance(demo, dict):
        return {name: value for name, value in demo.items() if name not in NOT_METRICS}
    measured = read_json(folder / "measured.json", strict=False)
    if isinstance(measured, dict) and isinstance(measured.get("values"), dict):
        return {**measured["values"], "chance": measured.get("chance", {})}
    history = read_json(folder / "history.json", strict=False)
    if not isinstance(history, dict):
        return {}
    rows = history.get("history") or [{}]
    last = {f"training {name}": value for name, value in rows[-1].items() if name not in ("step", "seconds")}
    return last | {name: value for name, value in history.items() if name in ("seconds_per_step", "plugin_share")}
