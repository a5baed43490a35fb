"""A probe that keeps position: a few learned queries attend to the codes of all places and predict text and words."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

QUERIES = 8
EPOCHS, PATIENCE = 60, 4  # epochs at most, and epochs without a smaller error after which the fit stops
STEPS, PATIENT_STEPS = 1140, 76  # few rows take more epochs, until they have had so many steps: the first overshoot
BATCH, READING_RATE, OUTPUT_RATE = 128, 3e-3, 1e-3
SHRINK = 3.0  # penalty on the squared output weights, beside errors that are 1 for the constant prediction
AVERAGE = 0.98  # share of the averaged weights that stays from step to step
STOP_ON = 5  # each fifth training row, in random order, decides when to stop


class AttentivePrediction(NamedTuple):
    """What the probe reads from n images."""

    text: Tensor  # n d
    words: Tensor  # n w, logits


class AttentiveProbe(nn.Module):
    """One cross-attention from learned queries to the places of a grid; made by `fit_attentive`.

    Codes are standardised per channel. A query weighs the places by their codes and by a learned score of each
    position, and reads the weighted mean code; text and words are linear in all readings, which are standardised as
    the untrained queries give them. The untrained probe is the constant prediction: the mean text, and each word's
    share of texts.
    """

    mean: Tensor
    scale: Tensor
    text_mean: Tensor
    text_scale: Tensor
    reading_mean: Tensor
    reading_scale: Tensor

    def __init__(self, places: Tensor, texts: Tensor, words: Tensor, *, draw: torch.Generator) -> None:
        super().__init__()
        c, h, w = places.shape[1:]
        self.grid = (c, h, w)
        self.register_buffer("mean", places.mean((0, 2, 3))[:, None, None])
        self.register_buffer("scale", _scale(places, (0, 2, 3))[:, None, None])
        self.register_buffer("text_mean", texts.mean(0))
        self.register_buffer("text_scale", _scale(texts, (0,)))
        self.queries = nn.Parameter(torch.randn(c, QUERIES, generator=draw) / (10 * c**0.5))
        waves = _slow_waves(h, w)
        self.positions = nn.Parameter(waves @ torch.randn(waves.shape[1], QUERIES, generator=draw))
        with torch.no_grad():
            readings = self._readings(places)
        self.register_buffer("reading_mean", readings.mean(0))
        self.register_buffer("reading_scale", _scale(readings, (0,)))
        self.out = nn.Parameter(torch.zeros(QUERIES * c, texts.shape[1] + words.shape[1]))
        share = (words.sum(0) + 0.5) / (len(words) + 1)
        self.offset = nn.Parameter(torch.cat([torch.zeros(texts.shape[1]), share.logit()]))

    def forward(self, places: Tensor) -> Tensor:
        """Standardised text and logits of words; n c h w -> n (d + w)."""
        readings = (self._readings(places) - self.reading_mean) / self.reading_scale
        return readings @ self.out + self.offset

    def _readings(self, places: Tensor) -> Tensor:
        """What each query reads; n c h w -> n (q c)."""
        codes = rearrange((places - self.mean) / self.scale, "n c h w -> n (h w) c")
        attention = (codes @ self.queries + self.positions).softmax(1)
        return rearrange(attention.transpose(1, 2) @ codes, "n q c -> n (q c)")

    @property
    def is_constant(self) -> bool:
        """Whether the probe learned nothing: no step of its fit did better than a constant prediction."""
        return not self.out.any()

    @torch.no_grad()
    def predict(self, places: Tensor) -> AttentivePrediction:
        """Text in the units of the training texts, and logits of words; n c h w -> n d, n w.

        Raises ValueError for a grid of another shape than the training images', or codes that are not finite.
        """
        if tuple(places.shape[1:]) != self.grid:
            raise ValueError(
                f"places are {tuple(places.shape[1:])} and the probe was fitted on {self.grid}: give that shape"
            )
        _refuse_not_finite(places, "places")
        parts = [self(part.float()) for part in places.split(500)] or [self(places.float())]
        text, words = torch.cat(parts).tensor_split([len(self.text_mean)], 1)
        spread = torch.where(self.text_scale.isfinite(), self.text_scale, 0.0)
        return AttentivePrediction(text * spread + self.text_mean, words)


def fit_attentive(places: Tensor, texts: Tensor, words: Tensor, *, seed: int = 0) -> AttentiveProbe:
    """Fit an attentive probe of texts and words; n c h w, n d, n w bool.

    Adam in float32 on four fifths of the rows, with averaged weights. The fit stops when the error on the other fifth
    has not fallen for `PATIENCE` epochs and `PATIENT_STEPS` steps, and the state of least error is kept. The error is
    the text's squared error plus the words' cross-entropy, each as a share of the constant prediction's. The same input
    and seed give the same probe; the caller's random state is neither read nor changed.

    Raises ValueError if the numbers of rows differ, for fewer than five rows, or for a value that is not finite.
    """
    if places.ndim != 4 or not len(places) == len(texts) == len(words) or len(places) < STOP_ON:
        raise ValueError(
            f"places are {tuple(places.shape)}, texts {tuple(texts.shape)} and words {tuple(words.shape)}: give "
            f"n c h w, n d and n w, at least {STOP_ON} rows of each"
        )
    if not texts.shape[1] + words.shape[1]:
        raise ValueError("texts and words have no column: give at least one, else the probe has nothing to learn")
    _refuse_not_finite(places, "places")
    _refuse_not_finite(texts, "texts")
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(places), generator=draw)
    stop, fit = order[::STOP_ON], torch.cat([order[i::STOP_ON] for i in range(1, STOP_ON)])
    places, texts, words = places.float(), texts.float(), words.float()
    with torch.enable_grad():
        probe = AttentiveProbe(places[fit], texts[fit], words[fit], draw=draw)
        aims = (texts - probe.text_mean) / probe.text_scale
        return _trained(probe, places, aims, words, fit, stop, draw)


def _trained(
    probe: AttentiveProbe,
    places: Tensor,
    texts: Tensor,
    words: Tensor,
    fit: Tensor,
    stop: Tensor,
    draw: torch.Generator,
) -> AttentiveProbe:
    """The averaged weights of least error on the rows `stop`; texts are standardised."""
    groups: list[dict[str, Any]] = [{"params": [probe.queries, probe.positions], "lr": READING_RATE}]
    optimizer = torch.optim.Adam([*groups, {"params": [probe.out, probe.offset], "lr": OUTPUT_RATE}])
    averaged = AveragedModel(probe, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))

    def errors(model: nn.Module, rows: Tensor) -> Tensor:
        text, logits = model(places[rows]).tensor_split([texts.shape[1]], 1)
        parts = [F.mse_loss(text, texts[rows])] if texts.shape[1] else []
        parts += [F.binary_cross_entropy_with_logits(logits, words[rows])] if words.shape[1] else []
        return torch.stack(parts)

    with torch.no_grad():
        constant = errors(probe, stop).clamp(min=1e-12)
    least, best, since = float(len(constant)), _state(probe), 0
    per_epoch = math.ceil(len(fit) / BATCH)
    patience = max(PATIENCE, math.ceil(PATIENT_STEPS / per_epoch))
    for _ in range(max(EPOCHS, math.ceil(STEPS / per_epoch))):
        for rows in fit[torch.randperm(len(fit), generator=draw)].split(BATCH):
            optimizer.zero_grad()
            loss = (errors(probe, rows) / constant).sum()
            (loss + SHRINK * probe.out.square().sum(0).mean()).backward()
            optimizer.step()
            averaged.update_parameters(probe)
        with torch.no_grad():
            error = (errors(averaged, stop) / constant).sum().item()
        if error < least:
            least, best, since = error, _state(averaged.module), 0
        else:
            since += 1
        if since == patience:
            break
    probe.load_state_dict(best)
    return probe.requires_grad_(False)


def _slow_waves(h: int, w: int) -> Tensor:
    """Cosines over a grid; slower waves are greater, so that untrained queries attend to regions; (h w) waves."""
    waves = [
        ((i * (y + 0.5) / h * torch.pi).cos()[:, None] * (j * (x + 0.5) / w * torch.pi).cos()) * 2 / (i * i + j * j)
        for y, x in [(torch.arange(h), torch.arange(w))]
        for i in range(3)
        for j in range(3)
        if i + j
    ]
    return torch.stack(waves, -1).flatten(0, 1)


def _state(probe: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in probe.state_dict().items()}


def _scale(values: Tensor, over: tuple[int, ...]) -> Tensor:
    """Spread that centred values are divided by; infinity for those that vary by no more than rounding."""
    mean = values.mean(over, keepdim=True)
    spread = (values - mean).square().mean(over).sqrt()
    return torch.where(spread > 1e-6 * mean.flatten().abs().clamp(min=1e-6), spread, torch.inf)


def _refuse_not_finite(values: Tensor, name: str) -> None:
    if not values.isfinite().all():
        raise ValueError(f"the {name} hold NaN or infinity: leave out the images without a value")
