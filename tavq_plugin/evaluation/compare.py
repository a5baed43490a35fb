"""`tavq compare`: train and evaluate every method on the same data by the same recipe, and tabulate the results."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tavq_plugin.data.corpus import load_or_build_corpus
from tavq_plugin.evaluation.aggregate import EqualTime, Runs, reference_of, summarise
from tavq_plugin.evaluation.equal_time import equal_time_steps
from tavq_plugin.evaluation.floors.floor_results import FloorResults, floor_results, refuse_foreign_floors
from tavq_plugin.evaluation.headline import headline_sentence
from tavq_plugin.evaluation.method_notes import method_notes
from tavq_plugin.evaluation.plan import EQUAL_TIME, Job, Plan
from tavq_plugin.evaluation.protocol import comparison_protocol, measured_cards
from tavq_plugin.evaluation.results import RunResults, refuse_foreign_results
from tavq_plugin.evaluation.run_jobs import ReportProgress, load_judges, load_targets, outcomes
from tavq_plugin.evaluation.tuning.tuned_options import (
    take_finished_trial,
    tuning_note,
    tuning_protocol,
    with_tuned_options,
)
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.io.atomic import read_json, save_json, writable
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.networks.weights import require_known_hashes
from tavq_plugin.training.build import build_tokenizer, describe_start
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.run_folder import finished_summary, refuse_foreign_files

MAKER = "tavq compare"
FILES = ("shared.json", "compare.json", "compare.md", "compare.html", "curves.png", "usage.png", "reconstructions.png")
FLOORS = "floors"  # folder of the floors' results
Tell = Callable[[str], None]


def compare(
    plan: Plan,
    *,
    workers: int = 1,
    tell: Tell = print,
    report: ReportProgress = lambda name, done, steps: None,
    finished: Tell = lambda name: None,
) -> dict[str, Any]:
    """Train, evaluate and tabulate all runs of a plan; returns the content of compare.json.

    compare.json is rewritten after every run. Finished runs are kept; interrupted runs resume from their last
    checkpoint. A run whose loss is not finite is named under "failed", and the other runs continue.

    Args:
        plan: The methods, seeds, recipe, data and folder of the comparison.
        workers: Runs trained at the same time, each in a process of one thread. Default: 1, in this process.
        tell: Called with each message for the user. Default: print.
        report: Called with a run's name, its optimizer steps done and their total. Default: nothing.
        finished: Called with the name of each run that ended. Default: nothing.

    Raises:
        ValueError: The recipe names a target outside the allowed packages, its `init` does not fit its host, or `out`
            holds a comparison by another recipe or on other data.
        FileExistsError: This command did not make a file that would be overwritten.
        FloatingPointError: Every run broke.
        OSError: The disk is full.
    """
    from tavq_plugin.evaluation.report.write import write_report

    refuse_targets(plan.recipe, allow=plan.allow)
    writable(Path(plan.out))
    plan, tuning = with_tuned_options(plan), tuning_protocol(plan)
    with _explain_full_disk(plan.out):
        refuse_unlike_comparison(plan)
        if plan.recipe.init and not all(finished_summary(job.folder) for job in plan.jobs):
            tell(f"every run {describe_start(plan.recipe, allow=plan.allow)}")
        claim(plan.out, FILES, MAKER, former=former_comparison(plan.out))
        plan.refuse_changed()
        numbers = {"n_train": plan.n_train, "n_eval": plan.n_eval}
        _, about = load_or_build_corpus(
            plan.out / "data",
            plan.data,
            plan.recipe.resolution,
            **numbers,
            tell=tell,
            settings=plan.read,
        )
        require_known_hashes(plan.weights)
        targets = load_targets(plan.out, plan.evaluation)
        content: dict[str, Any] = {"protocol": comparison_protocol(plan, about, targets, workers)}
        content["protocol"] |= {"tuning": tuning} if tuning else {}
        for job in plan.jobs:
            if take_finished_trial(job):
                tell(f"{job.name}: the trial of {plan.tuned} is this run, so it is not trained again")
        runs, failed = _run(plan.jobs, plan, workers, tell, report, finished, content)
        if not runs:
            raise FloatingPointError(
                "every run broke, so nothing can be compared: "
                + "; ".join(f"{name}: {why}" for name, why in failed.items())
            )
        floors = _floors(plan, runs, report)
        equal_time, failed_again = _equal_time(plan, runs, workers, tell, report, finished)
        reference = reference_of(runs)
        content |= summarise(runs, targets, reference=reference, floors=floors.runs, equal_time=equal_time)
        protocol = content["protocol"] | {"reference": reference, "floors": floors.titles}
        protocol |= {"floors_left_out": floors.left_out, "cards": measured_cards(content, protocol)}
        content |= {"protocol": protocol, "failed": failed | failed_again}
        content["notes"] = method_notes(plan.recipe, protocol["own"], _facts(plan, runs))
        content["notes"] += [tuning_note(tuning, plan.methods)] if tuning else []
        content["headline"] = headline_sentence(content)
        save_json(plan.out / "compare.json", content)
        write_report(content, runs, targets, plan.out)
    return content


def _run(
    jobs: list[Job],
    plan: Plan,
    workers: int,
    tell: Tell,
    report: ReportProgress,
    finished: Tell,
    content: dict[str, Any] | None = None,
) -> tuple[dict[str, dict[int, RunResults]], dict[str, str]]:
    """The results of all jobs by method and seed, and why runs broke; with `content`, compare.json after every run."""
    runs: dict[str, dict[int, RunResults]] = {}
    failed: dict[str, str] = {}
    for job, outcome in outcomes(jobs, report, workers=workers):
        finished(job.name)
        if isinstance(outcome, FloatingPointError):
            failed[job.name] = str(outcome)
            tell(f"{job.name} broke: {outcome}")
            continue
        runs.setdefault(job.method, {})[job.seed] = outcome
        if content is not None:
            unfinished = summarise(_in_order(plan, runs), load_targets(plan.out, plan.evaluation))
            save_json(plan.out / "compare.json", content | unfinished | {"failed": failed})
    return _in_order(plan, runs), failed


def _in_order(plan: Plan, runs: Runs) -> dict[str, dict[int, RunResults]]:
    """Runs in the order of the plan's methods and seeds, however they ended."""
    return {
        name: {seed: runs[name][seed] for seed in plan.seeds if seed in runs[name]}
        for name in plan.methods
        if name in runs
    }


def _facts(plan: Plan, runs: Runs) -> dict[str, dict[str, float]]:
    """The numbers that finished runs hold about their methods, of each method's first seed."""
    first = {name: plan.out / name / f"seed{next(iter(seeds))}" for name, seeds in runs.items()}
    found = {name: (finished_summary(folder) or {}).get("facts", {}) for name, folder in first.items()}
    return {name: facts for name, facts in found.items() if facts}


def _floors(plan: Plan, runs: Runs, report: ReportProgress) -> FloorResults:
    """The floors with as many codes and places as the reference's level 3; places on a square, whatever its grid."""
    first = next(iter(runs[reference_of(runs) or next(iter(runs))].values()))
    job = plan.jobs[0]
    return floor_results(
        load_targets(plan.out, plan.evaluation), load_judges(plan.out, plan.evaluation, plan.weights),
        plan.out / FLOORS, codes=max(2, int(first.artifacts["codes"])),
        grid=max(1, round(first.artifacts["held_out_indices"][0].numel() ** 0.5)), seeds=plan.seeds,
        untrained=partial(_untrained, plan), weights=plan.weights,
        settings={name: job.settings[name] for name in ("data", "evaluation", "weights")}, report=report,
    )  # fmt: skip


def _untrained(plan: Plan, seed: int) -> Tokenizer:
    """The recipe's host before any training."""
    recipe = replace(plan.recipe, method="vqgan", seed=seed, options={}, init="")
    return build_tokenizer(recipe, allow=plan.allow)


def _equal_time(
    plan: Plan,
    runs: Runs,
    workers: int,
    tell: Tell,
    report: ReportProgress,
    finished: Tell,
) -> tuple[EqualTime | str, dict[str, str]]:
    """Runs in which every method trains as long as the reference, or why there are none; and why runs broke."""
    reference = reference_of(runs)
    if reference is None:
        return "there is one method alone, so there is no other whose time it could be given", {}
    if not plan.equal_time:
        return "not asked for: give --equal-time, which trains methods of another speed once more", {}
    try:
        steps = equal_time_steps(runs, reference, plan.recipe.steps, former=_former_steps(plan))
    except ValueError as error:
        return str(error), {}
    jobs = [replace(job, steps=steps[job.method]) for job in plan.jobs if job.seed in runs.get(job.method, {})]
    again, broken = _run([job for job in jobs if job.steps != plan.recipe.steps], plan, workers, tell, report, finished)
    kept = {name: seeds for name, seeds in runs.items() if steps[name] == plan.recipe.steps}
    return EqualTime(_in_order(plan, kept | again), steps), broken


def refuse_unlike_comparison(plan: Plan) -> None:
    """Raise FileExistsError if a file that would be overwritten was not made by tavq-plugin."""
    refuse_taken(plan.out, FILES, MAKER, former=former_comparison(plan.out))
    refuse_foreign_floors(plan.out / FLOORS, plan.seeds)
    former = _former_steps(plan)
    again = [replace(job, steps=steps) for job in plan.jobs for steps in former.get(job.method, ())]
    for job in (*plan.jobs, *again):
        refuse_foreign_files(job.folder, job.recipe)
        refuse_foreign_results(job.folder)


def _former_steps(plan: Plan) -> dict[str, list[int]]:
    """The steps of each method's runs at equal time that the folder holds."""
    found: dict[str, list[int]] = {}
    for place in sorted((plan.out / EQUAL_TIME).glob("*-steps/*/")):
        steps = place.parent.name.removesuffix("-steps")
        if steps.isascii() and steps.isdecimal() and int(steps):
            found.setdefault(place.name, []).append(int(steps))
    return found


def former_comparison(out: Path) -> tuple[str, ...]:
    """The files of a comparison that was made before ownership markers existed; none for any other folder."""
    shared = read_json(out / "shared.json", strict=False)
    return FILES if isinstance(shared, dict) and {"host", "optimizer", "steps"} <= shared.keys() else ()


@contextmanager
def _explain_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"the disk is full at {out} ({error}): free some space and run the same command again; finished runs "
            "are kept"
        ) from error
