"""What `tavq compare --tuned` takes from `tavq tune`: options of methods, how they were chosen, and finished runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tavq_plugin.evaluation.plan import Job, Plan
from tavq_plugin.evaluation.results import load_results
from tavq_plugin.io.atomic import read_json


def read_tuning(folder: Path) -> dict[str, Any]:
    """The content of a folder's tune.json; raises FileNotFoundError or ValueError if it is no finished tuning."""
    content = read_json(Path(folder) / "tune.json")
    if not isinstance(content, dict) or not {"protocol", "methods", "reference"} <= content.keys():
        raise ValueError(f"{folder}/tune.json was not written by tavq tune: give the --out of a finished tavq tune")
    return content


def with_tuned_options(plan: Plan) -> Plan:
    """The plan with the options that `plan.tuned` chose for its methods.

    Raises ValueError if the plan gives other options to a tuned method, or tavq tune chose for none of its methods.
    """
    if plan.tuned is None:
        return plan
    chosen = {name: entry["options"] for name, entry in read_tuning(plan.tuned)["methods"].items()}
    found = {name: chosen[name] for name in plan.methods if name in chosen}
    if not found:
        raise ValueError(f"--tuned {plan.tuned} chose for {', '.join(chosen)}, and none of them is compared")
    for name, options in found.items():
        for option, value in plan.method_options.get(name, {}).items():
            if options.get(option) != value:
                raise ValueError(
                    f"--set {name}.options.{option}={value}, and --tuned {plan.tuned} chose {options.get(option)}: "
                    "give one of the two, or tune again with that --set"
                )
    return replace(plan, method_options={**plan.method_options, **found})


def tuning_protocol(plan: Plan) -> dict[str, Any]:
    """How the options were chosen: rule, number of trials, choices, and where the recipe differs from the trials'."""
    if plan.tuned is None:
        return {}
    content = read_tuning(plan.tuned)
    protocol = content["protocol"]
    ours, theirs = plan.shared, protocol["recipe"]
    return {
        "rule": protocol["rule"],
        "data": protocol["data"],
        "seed": protocol["seed"],
        "recipe_differs_in": sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)),
        "methods": {
            name: {
                "strength": entry["strength"],
                "trials": {steps: len(trials) for steps, trials in entry["trials"].items()},
                "at_edge": entry["at_edge"],
                "within_margin": entry["within_margin"],
            }
            for name, entry in content["methods"].items()
            if name in plan.methods
        },
    }


def tuning_note(tuning: Mapping[str, Any], methods: Sequence[str]) -> str:
    """One sentence on what was tuned and what was not."""
    each = ", ".join(f"{name} (strength {entry['strength']:g})" for name, entry in tuning["methods"].items())
    others = [name for name in methods if name not in tuning["methods"]]
    rest = f"; not tuned: {', '.join(others)}" if others else ""
    differs = tuning["recipe_differs_in"]
    caveat = f"; the trials had another {', '.join(differs)}" if differs else ""
    return f"tuned by one rule ({tuning['rule']}): {each}{rest}{caveat}"


def take_finished_trial(job: Job) -> bool:
    """Copy the trial that is this very run, measured in the same way, into the run's folder; whether there was one."""
    plan = job.plan
    if plan.tuned is None or job.steps is not None or job.folder.exists():
        return False
    tuning = read_tuning(plan.tuned)
    strength = tuning["methods"].get(job.method, {"strength": 1.0})["strength"]
    trial = replace(job, plan=replace(plan, out=Path(plan.tuned)), steps=plan.recipe.steps, strength=strength)
    if load_results(trial.folder, job.settings) is None:
        return False
    shutil.copytree(trial.folder, job.folder)
    return True
