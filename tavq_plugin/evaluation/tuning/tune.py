"""`tavq tune`: try the same number of strengths for every method, and choose one by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tavq_plugin.data.corpus import load_or_build_corpus
from tavq_plugin.evaluation.compare import Tell
from tavq_plugin.evaluation.plan import Job, Plan
from tavq_plugin.evaluation.protocol import measurement_protocol
from tavq_plugin.evaluation.results import refuse_foreign_results
from tavq_plugin.evaluation.run_jobs import ReportProgress, load_targets, outcomes
from tavq_plugin.evaluation.tuning.choice import PIXELS, TEXT, Trial, ordered, pareto_front, within
from tavq_plugin.evaluation.tuning.tuning_report import tuning_report
from tavq_plugin.io.atomic import save_json, save_text, writable
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.methods import METHODS, method_class
from tavq_plugin.networks.weights import require_known_hashes
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.run_folder import refuse_foreign_files

MAKER = "tavq tune"
FILES = ("shared.json", "tune.json", "tune.md")
REFERENCE = "vqgan"


@dataclass(frozen=True)
class TuneSettings:
    """The budget and the rule, the same for every method.

    Raises ValueError for a number out of its range, or for strengths that are fewer than `kept`, repeated or not
    positive.
    """

    short_steps: int = 200  #: optimizer steps of the first trials
    kept: int = 2  #: strengths of each method that are trained again for all of the recipe's steps
    margin: float = 0.1  #: dB of PSNR below the reference that a strength may cost
    strengths: tuple[float, ...] | None = None  #: None: each method's own, of which there are as many for each

    def __post_init__(self) -> None:
        if self.short_steps < 1 or self.kept < 1:
            raise ValueError(f"short_steps and kept must be 1 or more, got {self.short_steps} and {self.kept}")
        if not self.margin >= 0:
            raise ValueError(f"margin must be 0 or more dB, got {self.margin}")
        own = self.strengths
        if own is not None and (len(set(own)) < max(len(own), self.kept) or not all(value > 0 for value in own)):
            raise ValueError(f"strengths {own}: give at least {self.kept} different numbers above 0")

    def strengths_of(self, method: str) -> tuple[float, ...]:
        """The strengths that are tried for a method; none if nothing weighs what it adds."""
        cls = method_class(method)
        return (self.strengths or cls.strengths) if cls.weighed_by else ()


def tune(
    plan: Plan,
    settings: TuneSettings,
    *,
    workers: int = 1,
    tell: Tell = print,
    report: ReportProgress = lambda name, done, steps: None,
    finished: Tell = lambda name: None,
) -> dict[str, Any]:
    """Try strengths of every method of the plan and choose one each; returns the content of tune.json.

    Every strength is trained for `short_steps`, and the best `kept` of each method for all steps of the recipe, from
    the plan's one seed. The tune split decides. Finished trials are kept, and interrupted ones resume.

    Raises:
        ValueError: The plan has no method to tune, more than one seed, or fewer steps than `short_steps`; and what
            `compare` raises.
        FileExistsError: This command did not make a file that would be overwritten.
        FloatingPointError: The reference broke, or every trial of a method did.
    """
    methods = tunable(plan, settings)
    refuse_targets(plan.recipe, allow=plan.allow)
    writable(Path(plan.out))
    refuse_taken(plan.out, FILES, MAKER)
    short, long = settings.short_steps, plan.recipe.steps
    (seed,) = plan.seeds

    def trial(method: str, steps: int, strength: float) -> Job:
        return Job(plan, method, seed, steps, strength)

    first = [trial(REFERENCE, short, 1.0)]
    first += [trial(method, short, strength) for method in methods for strength in settings.strengths_of(method)]
    for job in (*first, *(replace(job, steps=long) for job in first)):
        refuse_foreign_files(job.folder, job.recipe)
        refuse_foreign_results(job.folder)
    claim(plan.out, FILES, MAKER)
    plan.refuse_changed()
    _, about = load_or_build_corpus(
        plan.out / "data", plan.data, plan.recipe.resolution, n_train=plan.n_train, n_eval=plan.n_eval, tell=tell,
        settings=plan.read,
    )  # fmt: skip
    require_known_hashes(plan.weights)

    def tried(jobs: Sequence[Job]) -> tuple[dict[str, list[Trial]], dict[str, str]]:
        return _tried(jobs, report, finished, tell, workers)

    early, failed = tried(first)
    reference = _reference(early, failed, short)
    best = {
        method: ordered(early[method], reference=reference, margin=settings.margin)[: settings.kept]
        for method in methods
        if method in early
    }
    again = [trial(REFERENCE, long, 1.0)]
    again += [trial(method, long, one.strength) for method, kept in best.items() for one in kept]
    late, failed_again = tried(again) if long != short else (early, {})
    failed |= failed_again
    reference = _reference(late, failed, long)
    if broken := [method for method in methods if method not in late]:
        raise FloatingPointError(f"every trial of {broken[0]} broke: " + "; ".join(failed.values()))
    content = {
        "protocol": {
            "data": "scenes" if plan.data is None else str(plan.data), **about, "split": "tune", "seed": seed,
            "recipe": plan.shared, **asdict(settings), "rule": rule(settings, long),
            **measurement_protocol(load_targets(plan.out, plan.evaluation), plan.weights),
        },
        "reference": {str(short): asdict(early[REFERENCE][0]), str(long): asdict(late[REFERENCE][0])},
        "methods": {
            method: _chosen(plan, settings, method, early[method], late[method], reference) for method in methods
        },
        "failed": failed,
    }  # fmt: skip
    save_json(plan.out / "tune.json", content)
    save_text(plan.out / "tune.md", tuning_report(content))
    return content


def tunable(plan: Plan, settings: TuneSettings) -> list[str]:
    """The plan's methods whose strength can be chosen; raises ValueError if the plan does not fit."""
    if len(plan.seeds) > 1:
        raise ValueError(f"seeds {','.join(map(str, plan.seeds))}: settings are chosen on one seed; give one")
    if plan.recipe.steps < settings.short_steps:
        raise ValueError(
            f"the recipe has {plan.recipe.steps} steps and the first trials {settings.short_steps}: give more --steps "
            "or fewer --short-steps"
        )
    methods = [name for name in plan.methods if settings.strengths_of(name)]
    if not methods:
        known = ", ".join(name for name in METHODS if method_class(name).weighed_by)
        raise ValueError(f"nothing weighs what {', '.join(plan.methods)} adds: give some of {known}")
    return methods


def rule(settings: TuneSettings, steps: int) -> str:
    """The rule of the choice, in words."""
    return (
        f"each method: its strengths at {settings.short_steps} steps, then the best {settings.kept} at {steps}; best "
        f"is the greatest word mAP of level 3 by the grid probe on the tune split, among those whose PSNR is at most "
        f"{settings.margin:g} dB below that of {REFERENCE} at as many steps; if there is none, the greatest PSNR"
    )


def _tried(
    jobs: Sequence[Job], report: ReportProgress, finished: Callable[[str], None], tell: Tell, workers: int
) -> tuple[dict[str, list[Trial]], dict[str, str]]:
    """The trials by method, in the order of their strengths, and why runs broke."""
    trials: dict[str, list[Trial]] = {}
    failed: dict[str, str] = {}
    for job, outcome in outcomes(jobs, report, workers=workers):
        finished(job.name)
        if isinstance(outcome, FloatingPointError):
            failed[job.name] = str(outcome)
            tell(f"{job.name} broke: {outcome}")
            continue
        assert job.strength is not None
        found = Trial(job.strength, outcome.values[TEXT], outcome.values[PIXELS])
        trials.setdefault(job.method, []).append(found)
    return {method: sorted(each, key=lambda one: one.strength) for method, each in trials.items()}, failed


def _reference(trials: dict[str, list[Trial]], failed: dict[str, str], steps: int) -> float:
    """The reference's PSNR."""
    if REFERENCE not in trials:
        raise FloatingPointError(f"{REFERENCE} broke at {steps} steps, so no PSNR can be compared: {failed}")
    return trials[REFERENCE][0].pixels


def _chosen(
    plan: Plan, settings: TuneSettings, method: str, early: list[Trial], late: list[Trial], reference: float
) -> dict[str, Any]:
    """A method's entry of tune.json."""
    best = ordered(late, reference=reference, margin=settings.margin)[0]
    tried = settings.strengths_of(method)
    return {
        "strength": best.strength,
        "options": plan.options_of(method, best.strength),
        "within_margin": within(best, reference=reference, margin=settings.margin),
        "at_edge": best.strength in (min(tried), max(tried)),
        "trials": {str(settings.short_steps): [*map(asdict, early)], str(plan.recipe.steps): [*map(asdict, late)]},
        "front": [one.strength for one in pareto_front(early)],
    }
