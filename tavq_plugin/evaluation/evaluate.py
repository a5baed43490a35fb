"""Everything a comparison measures of one trained tokenizer, on held-out images, with probes fitted alike for all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.evaluation.judges import Judges
from tavq_plugin.evaluation.metrics.codebook import codebook_use
from tavq_plugin.evaluation.metrics.image import WINDOW, psnr, ssim
from tavq_plugin.evaluation.metrics.purity import code_word_purity
from tavq_plugin.evaluation.metrics.relation import similarity_error
from tavq_plugin.evaluation.metrics.retrieval import found, found_by, precision_shares
from tavq_plugin.evaluation.metrics.transport_retrieval import transport_scores
from tavq_plugin.evaluation.metrics.words import frequent_words, histograms, masked_words, presence
from tavq_plugin.evaluation.probes import fit_ridge
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.types import GRANULARITIES, Units

AT = (1, 5, 10, 50)
SHOWN = 8  # held-out images whose reconstructions are kept for the grid


@dataclass(frozen=True)
class Measuring:
    """What is measured on; the same for every run of a comparison."""

    words: int = 100  # most frequent content words of the training texts
    probe_rows: int = 6000  # training images that fit the probes, at most: the first
    transported: int = 100  # held-out images of the retrieval by transport, at most
    judges: tuple[str, ...] = ("inception", "lpips", "mobilenet", "squeezenet")
    batch_size: int = 50

    def __post_init__(self) -> None:
        for name in ("words", "probe_rows", "transported", "batch_size"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")


class Measured(NamedTuple):
    """One run's figures."""

    values: dict[str, float]  # by metric; a metric of levels also as its levels' mean
    each: dict[str, Tensor]  # by metric, of each held-out image, NaN where it has no part; `values` is its mean
    absent: dict[str, str]  # by metric, why it is not there
    kept: dict[str, Tensor]  # indices, word scores and reconstructions, for what compares several runs


class Texts:
    """The text side of a corpus, worked out once: targets of the probes, words, units of the held-out texts."""

    def __init__(self, corpus: Corpus, settings: Measuring) -> None:
        self.corpus, self.settings = corpus, settings
        store, held_out = corpus.store, corpus.held_out_rows
        self.fitted = train = corpus.train_rows[: settings.probe_rows]
        self.words = frequent_words(store, corpus.train_rows, settings.words)
        self.train_words, self.held_out_words = (presence(store, rows, self.words) for rows in (train, held_out))
        self.train_means, self.held_out_means = (self._means(rows) for rows in (train, held_out))
        place = {word: i for i, word in enumerate(store.vocabulary)}
        vectors = store.table[[place[word] for word in self.words]].float() - store.mean("word")
        self.vectors = F.normalize(vectors, dim=1)

    def _means(self, rows: range) -> list[Tensor]:
        parts = []
        for start in range(0, len(rows), 500):
            batch = self.corpus.store.batch(rows[start : start + 500])
            parts.append([_mean(batch[name]) for name in GRANULARITIES])
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    @cached_property
    def transported(self) -> Tensor:
        """Places, among the held-out, of the images of the retrieval by transport: the first with text."""
        told = torch.stack([means.abs().sum(1) > 0 for means in self.held_out_means]).all(0)
        return told.nonzero().flatten()[: self.settings.transported]

    @cached_property
    def units(self) -> list[Units]:
        """Their units, by level."""
        batch = self.corpus.store.batch([self.corpus.n_train + i for i in self.transported.tolist()])
        return [batch[name] for name in GRANULARITIES]


class _Through(NamedTuple):
    pooled: list[Tensor]  # by level, n c
    indices: list[Tensor]  # by level, n h w
    quantized: list[Tensor]  # by level, s c h w, of `keep` alone
    reconstruction: Tensor | None  # n 3 h w uint8


@torch.no_grad()
def measure(tokenizer: Tokenizer, texts: Texts, judges: Judges) -> Measured:
    """All metrics of a trained tokenizer; every probe is a ridge regression fitted on the training rows."""
    corpus, settings = texts.corpus, texts.settings
    tokenizer.eval()
    nothing = torch.empty(0, dtype=torch.long)
    train = _through(tokenizer, corpus.images[: len(texts.fitted)], settings, keep=nothing, decode=False)
    images = corpus.images[corpus.n_train :]
    ours = _through(tokenizer, images, settings, keep=texts.transported, decode=True)
    values, each = judges.judge(ours.reconstruction)
    absent = dict(judges.absent)
    pairs = zip(ours.reconstruction.split(50), images.split(50), strict=True)
    pairs = [(to_float(a), to_float(b)) for a, b in pairs]
    each["psnr"] = torch.cat([psnr(*pair) for pair in pairs])
    if images.shape[-1] >= WINDOW:
        each["ssim"] = torch.cat([ssim(*pair) for pair in pairs])
    else:
        absent["ssim"] = f"its window is {WINDOW} pixels and images are {images.shape[-1]}"
    sizes = _sizes(tokenizer, max(int(train.indices[-1].max()), int(ours.indices[-1].max())))
    values |= _usage(tokenizer, ours.indices, sizes)
    kept = {"train_indices": train.indices[-1], "held_out_indices": ours.indices[-1]}
    kept |= {"codes": torch.tensor(sizes[-1]), "shown": ours.reconstruction[:SHOWN]}
    for level in range(len(ours.pooled)):
        _of_level(level, train, ours, texts, sizes[level], values, each, absent, kept)
    _of_masked(train, ours, texts, each, absent)
    _mean_over_levels(values, each, len(ours.pooled))
    for name in [name for name, value in each.items() if value.isnan().all()]:
        absent[name] = "no held-out image has a value: texts without units or frequent words"
        del each[name]
    values |= {name: value.nanmean().item() for name, value in each.items()}
    for name in [name for name, value in values.items() if not math.isfinite(value)]:
        absent[name] = f"it came out as {values.pop(name)}"
        each.pop(name, None)
    return Measured(values, {name: value.float() for name, value in each.items()}, absent, kept)


def _of_level(
    level: int,
    train: _Through,
    ours: _Through,
    texts: Texts,
    size: int,
    values: dict[str, float],
    each: dict[str, Tensor],
    absent: dict[str, str],
    kept: dict[str, Tensor],
) -> None:
    """Word probes and purity of a level, then what concerns its units."""
    tag = f"_{level + 1}"
    sides = {"word_map": (train.pooled[level], ours.pooled[level])}
    sides["word_map_codes"] = tuple(histograms(side.indices[level], size) for side in (train, ours))
    for name, (seen, new) in sides.items():
        scores = fit_ridge(seen, texts.train_words).predict(new)
        each[name + tag] = precision_shares(scores, texts.held_out_words)
        if name == "word_map":
            kept[f"word_scores{tag}"] = scores.float()
    try:
        values["purity" + tag] = code_word_purity(sides["word_map_codes"][1], texts.held_out_words).excess
    except ValueError as error:
        absent["purity"] = str(error)
    told = texts.train_means[level].abs().sum(1) > 0
    asked = texts.held_out_means[level].abs().sum(1) > 0
    if told.sum() < 2 or asked.sum() < 2:
        why = f"{int(told.sum())} training and {int(asked.sum())} held-out texts have units at level {level + 1}"
        absent |= {f"{way}_r{k}": why for way in ("image_text", "text_image") for k in AT}
        return
    _of_units(level, train, ours, texts, told, asked, each)


def _of_units(
    level: int, train: _Through, ours: _Through, texts: Texts, told: Tensor, asked: Tensor, each: dict[str, Tensor]
) -> None:
    """Retrieval both ways, pooled and by transport; of level 1 also LG-VQ's similarity."""
    n, tag = len(asked), f"_{level + 1}"
    probe = fit_ridge(train.pooled[level][told], texts.train_means[level][told])
    predicted, meant = probe.predict(ours.pooled[level][asked]), texts.held_out_means[level][asked].double()
    for way, hits in (("image_text", found(predicted, meant, at=AT)), ("text_image", found(meant, predicted, at=AT))):
        each |= {f"{way}_{k}{tag}": _spread_out(100 * hit, asked.nonzero().flatten(), n) for k, hit in hits.items()}
    if len(texts.transported) >= 2:
        at = tuple(k for k in AT if k < len(texts.transported))
        chosen = ours.indices[level][texts.transported]
        score = transport_scores(ours.quantized[level], chosen, texts.units[level], probe)
        for way, table in (("image_text", score), ("text_image", score.T)):
            hits = found_by(table, at=at)
            each |= {f"{way}_ot_{k}{tag}": _spread_out(100 * hit, texts.transported, n) for k, hit in hits.items()}
    if level == 0 and len(texts.transported):
        points = rearrange(ours.quantized[0], "b c h w -> b (h w) c")
        units = zip(texts.units[0].embeddings.split(8), texts.units[0].mask.split(8), points.split(8), strict=True)
        parts = [similarity_error(codes, Units(words, mask), probe) for words, mask, codes in units]
        each["similarity_mse"] = _spread_out(torch.cat(parts), texts.transported, n)


def _of_masked(train: _Through, ours: _Through, texts: Texts, each: dict[str, Tensor], absent: dict[str, str]) -> None:
    """Masked words from the codes of all levels."""
    if len(texts.words) < 2:
        absent["masked_word"] = absent["masked_word_gain"] = "the training texts have fewer than two frequent words"
        return
    told = masked_words(
        torch.cat(train.pooled, 1), torch.cat(ours.pooled, 1), texts.train_words, texts.held_out_words, texts.vectors
    )
    each["masked_word"] = 100 * told.with_codes
    each["masked_word_gain"] = 100 * (told.with_codes - told.text_alone)


def _mean_over_levels(values: dict[str, float], each: dict[str, Tensor], levels: int) -> None:
    """name_1 … name_l also as name, their mean."""
    for table in (values, each):
        for name in [name[:-2] for name in table if name.endswith("_1")]:
            parts = [table[f"{name}_{level + 1}"] for level in range(levels) if f"{name}_{level + 1}" in table]
            if len(parts) == levels and name not in table:
                table[name] = sum(parts) / levels


def _usage(tokenizer: Tokenizer, indices: list[Tensor], sizes: list[int]) -> dict[str, float]:
    """Of the host's own level as `usage`, `perplexity`, `dead_codes`; of the added levels as usage_1, usage_2."""
    use = codebook_use(indices[-1], sizes[-1])
    values = {"usage": use.usage, "perplexity": use.perplexity, "dead_codes": float(use.dead)}
    for level, (index, size) in enumerate(zip(indices[:-1], sizes[:-1], strict=True), 1):
        values[f"usage_{level}"] = codebook_use(index, size).usage
    return values


def _sizes(tokenizer: Tokenizer, greatest: int) -> list[int]:
    """Codes of each level's codebook; where the host shows none, up to the greatest index seen."""
    table = tokenizer.adapter.codebook()
    shared = len(table) if table is not None else greatest + 1
    own = [len(embedding.weight) for embedding in tokenizer.hierarchy.own]
    return [*(own or [shared] * len(tokenizer.adapter.taps)), shared]


def _through(tokenizer: Tokenizer, images: Tensor, settings: Measuring, *, keep: Tensor, decode: bool) -> _Through:
    pooled, indices, quantized, made = [], [], [], []
    wanted, device = set(keep.tolist()), next(tokenizer.parameters()).device
    for start in range(0, len(images), settings.batch_size):
        codes = tokenizer.encode(to_float(images[start : start + settings.batch_size].to(device)))
        pooled.append([reduce(level.quantized, "b c h w -> b c", "mean").cpu() for level in codes.levels])
        indices.append([level.indices.cpu() for level in codes.levels])
        here = [i for i in range(len(codes.final.indices)) if start + i in wanted]
        quantized.append([level.quantized[here].cpu() for level in codes.levels])
        if decode:
            made.append(to_uint8(tokenizer.decode(codes)).cpu())
    if not all(part.isfinite().all() for parts in pooled for part in parts):
        raise FloatingPointError("the codes hold NaN or infinity: the run is broken, nothing of it is measured")
    join = [[torch.cat(level) for level in zip(*parts, strict=True)] for parts in (pooled, indices, quantized)]
    return _Through(*join, torch.cat(made) if decode else None)


def _spread_out(values: Tensor, places: Tensor, n: int) -> Tensor:
    """Values at some places of n, NaN elsewhere."""
    return torch.full((n,), torch.nan, dtype=torch.float64).index_copy(0, places, values.double())


def _mean(units: Units) -> Tensor:
    return (units.embeddings * units.mask[..., None]).sum(1) / units.mask.sum(1, keepdim=True).clamp(min=1)
