"""Image completion: fill a hole of any shape from the codes around it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.tasks.decode_tokens import decode_tokens
from tavq_plugin.tasks.fit_masked import LEARNT, SAMPLES, commonest_tokens, fit_masked, parameters_of, sampling_of
from tavq_plugin.tasks.masked_model import MaskedModel, sample
from tavq_plugin.tasks.reading_conditions import SHUFFLED, other_rows
from tavq_plugin.tasks.sampling import SamplingSettings
from tavq_plugin.tasks.task import OF_CODES, Condition, EncodedRun, Sample, TaskResult, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData
from tavq_plugin.tasks.tokens import TokenLayout
from tavq_plugin.tasks.unconditional import Unconditional, unconditional_model

LIKELIEST = SamplingSettings(temperature=0.0)  # one guess, the most likely token of each place
GREY = 127  # what a sample shows where the model was given nothing


class Completion:
    """Guess what a hole hides: the share of hidden codes that is right, and PSNR inside the hole.

    The model is that of unconditional generation. Holes are a square in the middle, the right half, and a random blob,
    in turn.
    """

    name: ClassVar[str] = "completion"
    main_metric: ClassVar[str] = "agreement"
    smaller_is_better: ClassVar[bool] = False

    def unfit(self, data: TaskData) -> str:
        """Every image can serve."""
        return ""

    def settings(self, *, quick: bool) -> TaskSettings:
        """Those of unconditional generation, so that one model serves both."""
        return replace(Unconditional().settings(quick=quick), sampling=LIKELIEST)

    def run(self, run: EncodedRun, data: TaskData, settings: TaskSettings, at: Workplace) -> TaskResult:
        """Complete every held-out image by the codes around the hole, and by the controls."""
        layout, true, images = run.train.layout, run.held_out.tokens, data.held_out.images
        how = sampling_of(settings, run)
        holes = drawn_holes(len(images), images.shape[-1], seed=0)  # the same holes for every run and seed
        hidden = hidden_places(layout, holes)
        seed = settings.fit.seed or run.seed
        wrong = run.train.tokens[other_rows(len(run.train.tokens), seed)]
        shuffled = fit_masked(
            run, settings, at.own / self.name / "shuffled-codes", at, label=f"{self.name}, {SHUFFLED}", context=wrong,
            made_from={"pairs": "shuffled"},
        )  # fmt: skip
        own = unconditional_model(run, settings, at)
        given = {
            OF_CODES: (own, true),
            SHUFFLED: (shuffled, true[other_rows(len(true), seed)]),
            LEARNT: (unconditional_model(run, settings, at, embedding="indices"), true),
        }
        filled = {name: _filled(model, tokens, hidden, how) for name, (model, tokens) in given.items()}
        conditions, shown = {}, {}
        for name, tokens in filled.items():
            kept = (tokens == given[name][1])[~hidden]
            conditions[name], shown[name] = _scored(run, tokens, true, hidden, images, holes, kept=kept)
        majority = torch.where(hidden, commonest_tokens(run), true)
        conditions["majority"], _ = _scored(run, majority, true, hidden, images, holes)
        conditions["reconstructions"], _ = _scored(run, true, true, hidden, images, holes)
        samples = []
        for image, hole, made in zip(images[:SAMPLES], holes, shown[OF_CODES], strict=False):
            samples.append(Sample("", (image.masked_fill(hole, GREY), pasted(image, made, hole), image)))
        return TaskResult(
            conditions,
            samples=samples,
            protocol={
                "images": len(images),
                "hidden_share": hidden.float().mean().item(),
                "parameters": parameters_of(own),
                "sampling": asdict(how),
            },
        )


def complete(
    run: EncodedRun,
    model: MaskedModel,
    images: Tensor,
    tokens: Tensor,
    holes: Tensor,
    settings: SamplingSettings = LIKELIEST,
) -> Tensor:
    """Images with their holes filled in; n 3 r r uint8, n s, n r r bool -> n 3 r r uint8. Other pixels stay exact.

    Raises ValueError for holes of another size.
    """
    if holes.shape != (len(images), *images.shape[-2:]):
        raise ValueError(f"got holes of shape {tuple(holes.shape)} for images of shape {tuple(images.shape)}")
    made = decode_tokens(run, _filled(model, tokens, hidden_places(run.train.layout, holes), settings))
    return pasted(images, made, holes)


def hidden_places(layout: TokenLayout, holes: Tensor) -> Tensor:
    """The places whose patch of pixels has a part in the hole; n r r bool -> n s bool.

    >>> from tavq_plugin.tasks.tokens import LevelGrid
    >>> hole = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> hole[0, 0, 3] = True
    >>> hidden_places(TokenLayout((LevelGrid(2, 2, 5),)), hole).tolist()
    [[False, True, False, False]]
    """
    pixels = holes[:, None].float()
    parts = [F.adaptive_max_pool2d(pixels, (grid.height, grid.width)).flatten(1) for grid in layout.grids]
    return torch.cat(parts, 1) > 0


def drawn_holes(n: int, resolution: int, *, seed: int) -> Tensor:
    """Holes in turn: a square in the middle with half the side, the right half, and a random blob; n r r bool."""
    draw = torch.Generator().manual_seed(seed)
    holes = torch.zeros(n, resolution, resolution, dtype=torch.bool)
    quarter, half = resolution // 4, resolution // 2
    holes[0::3, quarter : quarter + half, quarter : quarter + half] = True
    holes[1::3, :, half:] = True
    noise = torch.rand(len(holes[2::3]), 1, 4, 4, generator=draw)
    smooth = F.interpolate(noise, (resolution, resolution), mode="bicubic")[:, 0]
    if len(smooth):
        holes[2::3] = smooth >= smooth.flatten(1).quantile(0.7, dim=1)[:, None, None]
    return holes


def pasted(images: Tensor, made: Tensor, holes: Tensor) -> Tensor:
    """The made pixels inside the holes and the images' own outside; ... 3 r r, ... 3 r r, ... r r bool."""
    return torch.where(holes.unsqueeze(-3), made, images)


def psnr_inside(made: Tensor, images: Tensor, holes: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over the pixels of the hole, dB; n 3 r r uint8 -> n.

    A perfect hole counts as if one of its sub-pixels were off by one.
    """
    inside = holes[:, None].expand_as(images)
    counts = inside.flatten(1).sum(1).double()
    squares = ((made.double() - images.double()).square() * inside).flatten(1).sum(1)
    return (10 * torch.log10(255**2 * counts / squares.clamp(min=1))).float()


def _filled(model: MaskedModel, tokens: Tensor, hidden: Tensor, settings: SamplingSettings) -> Tensor:
    return sample(model, tokens.masked_fill(hidden, model.layout.mask), settings)


def _scored(
    run: EncodedRun, tokens: Tensor, true: Tensor, hidden: Tensor, images: Tensor, holes: Tensor,
    *, kept: Tensor | None = None,
) -> tuple[Condition, Tensor]:  # fmt: skip
    """The scores of filled tokens, and their images; `kept` says of every given token whether it stayed."""
    made = decode_tokens(run, tokens)
    right = ((tokens == true) & hidden).sum(1) / hidden.sum(1)
    per_image = {"agreement": right, "psnr": psnr_inside(made, images, holes)}
    values = {metric: value.mean().item() for metric, value in per_image.items()}
    if kept is not None:
        values["kept_exact"] = kept.float().mean().item()
    return Condition(values, per_image), made
