"""Everything that the page of a run shows, as JSON content: images, plans, codes, words, reconstructions, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tavq_plugin.types import GRANULARITIES
from tavq_plugin.use.explore.code_cards import level_cards
from tavq_plugin.use.explore.codebook_plane import codebook_plane, plane_colours
from tavq_plugin.use.explore.history_curves import curves_of
from tavq_plugin.use.explore.page_images import PageImages
from tavq_plugin.use.explore.page_plans import image_plan, level_plans, why_no_plans
from tavq_plugin.use.explore.run_codes import ExploredRun, Progress, RunCodes, codes_of
from tavq_plugin.use.explore.sprites import packed, short, sprite
from tavq_plugin.use.ground import NEAR_UNIFORM
from tavq_plugin.use.held_out_words import presence_of_words


def page_content(
    run: ExploredRun,
    images: PageImages,
    *,
    also: Sequence[ExploredRun] = (),
    progress: Progress = lambda name, done, total: None,
    version: str = "",
) -> dict[str, Any]:
    """The content of the page of a run on some images; `also` are further runs, of the same resolution.

    Raises ValueError if a further run has another resolution, and FloatingPointError if codes are not finite.
    """
    for other in also:
        if other.resolution != run.resolution:
            raise ValueError(
                f"--also {other.label}: it reads images of {other.resolution} px and {run.label} of {run.resolution}: "
                "give a run of the same resolution"
            )
    runs = [run, *also]
    codes = [codes_of(one, images.images, images.shown, progress=progress) for one in runs]
    return {
        "version": version,
        "run": {"label": run.label, "name": run.name, "seed": run.seed, "resolution": run.resolution, **run.about},
        "data": images.name,
        "evidence": len(images.images),
        "near_uniform": NEAR_UNIFORM,
        "sprite": sprite(images.shown_images),
        "levels": _levels(run, codes[0]),
        **_images(run, images, codes[0], progress),
        "cards": _cards(runs, images, codes, progress),
        "runs": [_reconstructions(*pair, images) for pair in zip(runs, codes, strict=True)],
        "training": [{"label": one.label, **curves_of(one.history)} for one in runs],
    }


def _levels(run: ExploredRun, codes: RunCodes) -> list[dict[str, Any]]:
    granularities = run.align.levels if run.align is not None else GRANULARITIES
    found = []
    for number, (indices, table) in enumerate(zip(codes.indices, codes.table, strict=True)):
        name = granularities[number] if number < len(granularities) else ""
        size = int(indices.max()) + 1 if table is None else len(table)
        used = torch.bincount(indices.flatten(), minlength=size) > 0
        level: dict[str, Any] = {"number": number + 1, "granularity": name, "codes": size}
        level |= {"height": indices.shape[1], "width": indices.shape[2], "used": int(used.sum())}
        if table is None:  # a host without a table: no plane, and shades by number
            level |= {"plane": None, "colours": packed((torch.arange(size) * 37 % 256)[:, None].expand(-1, 3))}
        else:
            plane = codebook_plane(table, used)
            level["plane"] = {"points": [short(point) for point in plane.points], "explained": short(plane.explained)}
            level["colours"] = packed(plane_colours(plane.points))
        found.append(level)
    return found


def _images(run: ExploredRun, images: PageImages, codes: RunCodes, progress: Progress) -> dict[str, Any]:
    """The shown images with their codes, and with plans where the run has any."""
    reason = why_no_plans(run.align, None if images.store is None else images.store.dim)
    plans: list[list[dict[str, Any]]] = [[] for _ in range(images.shown)]
    if not reason and run.align is not None and images.store is not None:
        for level, quantized in enumerate(codes.quantized):
            granularity, found = run.align.levels[level], level_plans(run.align, quantized, images.store, level)
            for row, plan in enumerate(found):
                names, units = images.store.units(row, granularity), images.units[row][granularity]
                plans[row].append(image_plan(plan, names, units))
            progress("plans", level + 1, len(codes.quantized))
    return {
        "no_plans": reason,
        "images": [
            {
                "text": images.texts[row],
                "codes": [packed(indices[row]) for indices in codes.indices],
                "plans": plans[row],
            }
            for row in range(images.shown)
        ],
    }


def _cards(
    runs: Sequence[ExploredRun], images: PageImages, codes: Sequence[RunCodes], progress: Progress
) -> list[dict[str, Any]]:
    vocabulary, words = presence_of_words(images.texts)
    others = [(run.label, made) for run, made in zip(runs[1:], codes[1:], strict=True)]
    cards, levels = [], len(codes[0].indices)
    for level in range(levels):
        cards.append(level_cards(codes[0], images.images, level, vocabulary, words, others=others))
        progress("codes", level + 1, levels)
    return cards


def _reconstructions(run: ExploredRun, codes: RunCodes, images: PageImages) -> dict[str, Any]:
    """A run's reconstructions, and their absolute errors, of the shown images."""
    if codes.reconstructions is None:
        return {"label": run.label, "missing": codes.not_decoded}
    error = (codes.reconstructions.int() - images.shown_images.int()).abs()
    squared = error.double().square().flatten(1).mean(1) / 255**2
    psnr = -10 * squared.clamp(min=1e-10).log10()
    return {
        "label": run.label,
        "missing": "",
        "images": sprite(codes.reconstructions),
        "errors": sprite(error.float().mean(1, keepdim=True).round().to(torch.uint8)),
        "psnr": short(psnr),
    }
