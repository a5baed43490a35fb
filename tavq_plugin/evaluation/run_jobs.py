"""Train and evaluate the runs of a comparison, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from tavq_plugin.data.corpus import load_corpus
from tavq_plugin.evaluation.evaluate import evaluate_run
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.plan import Job
from tavq_plugin.evaluation.results import RunResults, load_results, save_results
from tavq_plugin.evaluation.settings import EvaluationSettings
from tavq_plugin.evaluation.text_targets import TextTargets
from tavq_plugin.training import fit

ReportProgress = Callable[[str, int, int], None]  # run, optimizer steps done, steps in total
Outcome = tuple[Job, RunResults | FloatingPointError]


def outcomes(jobs: Sequence[Job], report: ReportProgress, *, workers: int = 1) -> Iterator[Outcome]:
    """Each run's results, or the error of a run whose loss is not finite, in the order in which they end.

    With more than one worker each run is a process of one thread. Ctrl-C, or any other error, ends them all.
    """
    return (_outcomes_in_parallel if workers > 1 else _outcomes_in_turn)(jobs, report, workers)


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


def _outcomes_in_turn(jobs: Sequence[Job], report: ReportProgress, workers: int) -> Iterator[Outcome]:
    for job in jobs:
        try:
            yield job, run_job(job, report)
        except FloatingPointError as error:
            yield job, error


def _outcomes_in_parallel(jobs: Sequence[Job], report: ReportProgress, workers: int) -> Iterator[Outcome]:
    """The outcomes of runs in parallel processes; Ctrl-C, or an error other than FloatingPointError, ends them all."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        progress_queue = manager.Queue()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        waiting = {pool.submit(_run_in_worker, job, progress_queue): job for job in jobs}
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
