"""`tavq compare`: train and evaluate every method on the same data by the same recipe, and tabulate the results."""

from __future__ import annotations

import errno
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from tavq_plugin.data.corpus import load_corpus, load_or_build_corpus
from tavq_plugin.evaluation.aggregate import summarise
from tavq_plugin.evaluation.evaluate import RECALL_AT, evaluate_run
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.plan import Job, Plan
from tavq_plugin.evaluation.results import RunResults, load_results, refuse_foreign_results, save_results
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.io.atomic import read_json, save_json, writable
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.networks.weights import files_of, require_known_hashes
from tavq_plugin.training import fit
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.run_folder import refuse_foreign_files

MAKER = "tavq compare"
FILES = ("shared.json", "compare.json", "compare.md", "compare.html", "curves.png", "usage.png", "reconstructions.png")
Tell = Callable[[str], None]
ReportProgress = Callable[[str, int, int], None]  # run, optimizer steps done, steps in total


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
        ValueError: The recipe names a target outside the allowed packages, or `out` holds a comparison by another
            recipe or on other data.
        FileExistsError: This command did not make a file that would be overwritten.
        FloatingPointError: Every run broke.
        OSError: The disk is full.
    """
    from tavq_plugin.evaluation.report.write import write_report

    refuse_targets(plan.recipe, allow=plan.allow)
    writable(Path(plan.out))
    with _explain_full_disk(plan.out):
        refuse_unlike_comparison(plan)
        claim(plan.out, FILES, MAKER, former=former_comparison(plan.out))
        plan.refuse_changed()
        numbers = {"n_train": plan.n_train, "n_eval": plan.n_eval}
        _, about = load_or_build_corpus(plan.out / "data", plan.data, plan.recipe.resolution, **numbers, tell=tell)
        require_known_hashes(plan.weights)
        targets = load_targets(plan.out, plan.evaluation)
        content: dict[str, Any] = {"protocol": _protocol(plan, about, targets, workers)}
        runs: dict[str, dict[int, RunResults]] = {name: {} for name in plan.methods}
        failed: dict[str, str] = {}
        for job, outcome in (_outcomes_in_parallel if workers > 1 else _outcomes_in_turn)(plan, report, workers):
            finished(job.name)
            if isinstance(outcome, FloatingPointError):
                failed[job.name] = str(outcome)
                tell(f"{job.name} broke: {outcome}")
                continue
            runs[job.method][job.seed] = outcome
            content |= summarise({name: seeds for name, seeds in runs.items() if seeds}, targets)
            save_json(plan.out / "compare.json", content | {"failed": failed})
        if not any(runs.values()):
            raise FloatingPointError("every run broke: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
        content["failed"] = failed
        measured_on = {"data": content["protocol"]["data"], "n_eval": about["n_eval"], "seeds": list(plan.seeds)}
        content["protocol"]["cards"] = {
            metric: {**card_of(metric).to_dict(), **measured_on}
            for table in content["methods"].values()
            for metric in table
        }
        save_json(plan.out / "compare.json", content)
        write_report(content, {name: seeds for name, seeds in runs.items() if seeds}, targets, plan.out)
    return content


def refuse_unlike_comparison(plan: Plan) -> None:
    """Raise FileExistsError if a file that would be overwritten was not made by tavq-plugin."""
    refuse_taken(plan.out, FILES, MAKER, former=former_comparison(plan.out))
    for job in plan.jobs:
        refuse_foreign_files(job.folder, job.recipe)
        refuse_foreign_results(job.folder)


def former_comparison(out: Path) -> tuple[str, ...]:
    """The files of a comparison that was made before ownership markers existed; none for any other folder."""
    shared = read_json(out / "shared.json", strict=False)
    return FILES if isinstance(shared, dict) and {"host", "optimizer", "steps"} <= shared.keys() else ()


def run_job(job: Job, report: ReportProgress) -> RunResults:
    """Train and evaluate one run; an interrupted run resumes, and the results of a finished run are only read."""
    saved = load_results(job.folder, job.settings)
    if saved is not None:
        return saved
    steps = job.recipe.steps
    targets = load_targets(job.plan.out, job.plan.evaluation)
    fitted = fit(
        job.method, job.recipe, targets.corpus, job.folder, progress=lambda done, row: report(job.name, done, steps),
        allow=job.plan.allow,
    )  # fmt: skip
    judges = load_judges(job.plan.out, job.plan.evaluation, job.plan.weights)
    speed = {"seconds_per_step": fitted.seconds_per_step, "plugin_share": fitted.plugin_share}
    results = evaluate_run(fitted.tokenizer, targets, judges) | RunResults(speed)
    save_results(job.folder, results, job.settings)
    return results


@lru_cache(maxsize=1)
def load_targets(out: Path, settings: EvaluationSettings) -> TextTargets:
    """The text targets of a comparison's corpus; computed once per process."""
    return TextTargets(load_corpus(out / "data"), settings)


@lru_cache(maxsize=1)
def load_judges(out: Path, settings: EvaluationSettings, weights: Path | None) -> Judges:
    """The judging networks with their features of the held-out images; computed once per process."""
    corpus = load_targets(out, settings).corpus
    return Judges(weights, corpus.images[corpus.n_train :], names=settings.judges)


def _outcomes_in_turn(
    plan: Plan, report: ReportProgress, workers: int
) -> Iterator[tuple[Job, RunResults | FloatingPointError]]:
    for job in plan.jobs:
        try:
            yield job, run_job(job, report)
        except FloatingPointError as error:
            yield job, error


def _outcomes_in_parallel(
    plan: Plan, report: ReportProgress, workers: int
) -> Iterator[tuple[Job, RunResults | FloatingPointError]]:
    """The outcomes of runs in parallel processes; Ctrl-C, or an error other than FloatingPointError, ends them all."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        progress_queue = manager.Queue()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        waiting = {pool.submit(_run_in_worker, job, progress_queue): job for job in plan.jobs}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                _report_queued(progress_queue, report)
                for future in done:
                    job = waiting.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise OSError(
                            f"a worker process died ({error}), most likely out of memory: give fewer --workers or a "
                            "smaller batch_size, and run the same command again"
                        ) from error
                    if error is not None and not isinstance(error, FloatingPointError):
                        raise error
                    yield job, error or _saved_results(job)
            pool.shutdown()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_worker() -> None:
    """Use one thread, and leave Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run_in_worker(job: Job, progress_queue: Any) -> None:
    run_job(job, lambda *progress: progress_queue.put(progress))


def _saved_results(job: Job) -> RunResults:
    results = load_results(job.folder, job.settings)
    if results is None:
        raise FileNotFoundError(f"{job.folder} lost its results during the comparison: run the same command again")
    return results


def _report_queued(progress_queue: Any, report: ReportProgress) -> None:
    with suppress(Empty):
        while True:
            report(*progress_queue.get_nowait())


def _protocol(plan: Plan, about: dict[str, Any], targets: TextTargets, workers: int) -> dict[str, Any]:
    n = about["n_eval"]
    return {
        "data": "scenes" if plan.data is None else str(plan.data),
        **about,
        "methods": list(plan.methods),
        "seeds": list(plan.seeds),
        "recipe": plan.shared,
        "own": {name: dict(plan.method_options.get(name, {})) for name in plan.methods},
        "measuring": {
            "words": len(targets.top_words),
            "probe_rows": len(targets.probe_rows),
            "transported": len(targets.transport_images),
        },
        "weights": files_of(plan.weights),
        "chance": {
            **{f"r{k}": min(100.0, 100 * k / n) for k in RECALL_AT},
            "word_map": 100 * targets.held_out_words.float().mean(0).mean().item(),
        },
        "spread": "standard deviation over seeds; none for one seed",
        "significance": "two-sided 5 %, from three seeds on: random effects of seeds and images where a metric has one "
        "value per image, else the paired t test over seeds; Holm over the methods",
        "images": "runs of one seed see the same training images in the same order; all runs share the held-out images",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": 1 if workers > 1 else torch.get_num_threads(),
        "workers": workers,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("tavq-plugin", "torch", "torchmetrics", "transformers", "accelerate"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


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
