"""`tavq compare`: every method trained and measured on the same data by the same recipe, resumably; one table."""

from __future__ import annotations

import errno
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from tavq_plugin.data.corpus import load_corpus, load_or_build_corpus
from tavq_plugin.evaluation.aggregate import summarise
from tavq_plugin.evaluation.evaluate import AT, Measured, Measuring, Texts, measure
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.cards import card_of
from tavq_plugin.evaluation.plan import Job, Plan
from tavq_plugin.evaluation.results import load_measured, refuse_unlike_figures, save_measured
from tavq_plugin.io.atomic import save_json, writable
from tavq_plugin.io.ownership import claim, refuse_taken
from tavq_plugin.networks.weights import files_of, refuse_other_weights
from tavq_plugin.training import fit
from tavq_plugin.training.build_host import refuse_targets
from tavq_plugin.training.trainer import refuse_unlike_run

MAKER = "tavq compare"
FILES = ("shared.json", "compare.json", "compare.md", "compare.html", "curves.png", "usage.png", "reconstructions.png")
Tell = Callable[[str], None]
Report = Callable[[str, int, int], None]  # run, optimizer steps done, of how many


def compare(
    plan: Plan,
    *,
    workers: int = 1,
    tell: Tell = print,
    report: Report = lambda name, done, steps: None,
    finished: Tell = lambda name: None,
) -> dict[str, Any]:
    """Train, measure and tabulate; -> what compare.json holds, which is written anew after every run.

    Finished runs are kept, interrupted ones go on from their last checkpoint. A run whose loss breaks is named under
    "failed" and the others go on. With `workers` above 1, runs go side by side, a process of one thread each.

    Raises ValueError where the recipe names what may not be built and where `out` holds a comparison by another recipe
    or on other data, FloatingPointError where every run broke, and OSError, with the mend, where the disk is full.
    """
    from tavq_plugin.evaluation.report.write import write_report

    refuse_targets(plan.recipe, allow=plan.allow)
    writable(Path(plan.out))
    with _full_disk_told(plan.out):
        refuse_unlike_comparison(plan)
        claim(plan.out, FILES, MAKER, former=former_comparison(plan.out))
        plan.refuse_changed()
        numbers = {"n_train": plan.n_train, "n_eval": plan.n_eval}
        _, about = load_or_build_corpus(plan.out / "data", plan.data, plan.recipe.resolution, **numbers, tell=tell)
        refuse_other_weights(plan.weights)
        texts = texts_in(plan.out, plan.measuring)
        content: dict[str, Any] = {"protocol": _protocol(plan, about, texts, workers)}
        runs: dict[str, dict[int, Measured]] = {name: {} for name in plan.methods}
        failed: dict[str, str] = {}
        for job, outcome in (_side_by_side if workers > 1 else _in_turn)(plan, report, workers):
            finished(job.name)
            if isinstance(outcome, FloatingPointError):
                failed[job.name] = str(outcome)
                tell(f"{job.name} broke: {outcome}")
                continue
            runs[job.method][job.seed] = outcome
            content |= summarise({name: seeds for name, seeds in runs.items() if seeds}, texts)
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
        write_report(content, {name: seeds for name, seeds in runs.items() if seeds}, texts, plan.out)
    return content


def refuse_unlike_comparison(plan: Plan) -> None:
    """FileExistsError, before anything is trained, where a file that would be overwritten is not ours."""
    refuse_taken(plan.out, FILES, MAKER, former=former_comparison(plan.out))
    for job in plan.jobs:
        refuse_unlike_run(job.folder, job.recipe)
        refuse_unlike_figures(job.folder)


def former_comparison(out: Path) -> tuple[str, ...]:
    """What a comparison left in its folder before there were markers; none where it holds none."""
    try:
        shared = json.loads((out / "shared.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return FILES if isinstance(shared, dict) and {"host", "optimizer", "steps"} <= shared.keys() else ()


def run_job(job: Job, report: Report) -> Measured:
    """One run: trained, or taken up where it stopped, then measured; kept where both are done already."""
    kept = load_measured(job.folder, job.settings)
    if kept is not None:
        return kept
    steps = job.recipe.steps
    texts = texts_in(job.plan.out, job.plan.measuring)
    fitted = fit(
        job.method, job.recipe, texts.corpus, job.folder, progress=lambda done, row: report(job.name, done, steps),
        allow=job.plan.allow,
    )  # fmt: skip
    measured = measure(fitted.tokenizer, texts, judges_of(job.plan.out, job.plan.measuring, job.plan.weights))
    measured.values["seconds_per_step"] = fitted.seconds_per_step
    measured.values["plugin_share"] = fitted.plugin_share
    save_measured(job.folder, measured, job.settings)
    return measured


@lru_cache(maxsize=1)
def texts_in(out: Path, measuring: Measuring) -> Texts:
    """A comparison's corpus and its text side; made once a process."""
    return Texts(load_corpus(out / "data"), measuring)


@lru_cache(maxsize=1)
def judges_of(out: Path, measuring: Measuring, weights: Path | None) -> Judges:
    """The judging networks and what they make of the held-out images; made once a process."""
    corpus = texts_in(out, measuring).corpus
    return Judges(weights, corpus.images[corpus.n_train :], names=measuring.judges)


def _in_turn(plan: Plan, report: Report, workers: int) -> Iterator[tuple[Job, Measured | Exception]]:
    for job in plan.jobs:
        try:
            yield job, run_job(job, report)
        except FloatingPointError as error:
            yield job, error


def _side_by_side(plan: Plan, report: Report, workers: int) -> Iterator[tuple[Job, Measured | Exception]]:
    """The same in processes; an error other than a broken loss ends all of them, and so does Ctrl-C."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        told = manager.Queue()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
        waiting = {pool.submit(_work, job, told): job for job in plan.jobs}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                _pass_on(told, report)
                for future in done:
                    job = waiting.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise OSError(
                            f"a process ended by itself ({error}), for want of memory as a rule: give fewer --workers "
                            "or a smaller batch_size, and run the same command again"
                        ) from error
                    if error is not None and not isinstance(error, FloatingPointError):
                        raise error
                    yield job, error or load_measured(job.folder, job.settings)
            pool.shutdown()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin() -> None:
    """A worker's start: one thread, and Ctrl-C is the parent's to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _work(job: Job, told: Any) -> None:
    run_job(job, lambda *progress: told.put(progress))


def _pass_on(told: Any, report: Report) -> None:
    while True:
        try:
            report(*told.get_nowait())
        except Empty:
            return


def _protocol(plan: Plan, about: dict[str, Any], texts: Texts, workers: int) -> dict[str, Any]:
    n = about["n_eval"]
    return {
        "data": "scenes" if plan.data is None else str(plan.data),
        **about,
        "methods": list(plan.methods),
        "seeds": list(plan.seeds),
        "recipe": plan.shared,
        "own": {name: dict(plan.own.get(name, {})) for name in plan.methods},
        "measuring": {
            "words": len(texts.words),
            "probe_rows": len(texts.fitted),
            "transported": len(texts.transported),
        },
        "weights": files_of(plan.weights),
        "chance": {
            **{f"r{k}": min(100.0, 100 * k / n) for k in AT},
            "word_map": 100 * texts.held_out_words.float().mean(0).mean().item(),
        },
        "spread": "standard deviation over seeds; none for one seed",
        "significance": "paired bootstrap over images and, with several seeds, seeds: 2000 draws, two-sided p; "
        "p_images over images alone; of mAP the images' parts are drawn, ranks stay",
        "images": "every run sees the same images in the same order (the seed's), and the same held-out ones",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": 1 if workers > 1 else torch.get_num_threads(),
        "workers": workers,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("tavq-plugin", "torch", "torchmetrics", "transformers", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"the disk is full at {out} ({error}): free some space and run the same command again; finished runs are "
            "whole and are kept"
        ) from error
