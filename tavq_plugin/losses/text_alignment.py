"""TextAlignment: the loss between the codes of three levels and words, phrases and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.distributed import require_synchronized
from tavq_plugin.losses.cloud_transport import solve_clouds, transport_clouds
from tavq_plugin.losses.code_distribution import CodeDistribution, refuse_masked_places
from tavq_plugin.losses.contrastive import level_contrasts, transport_contrast
from tavq_plugin.losses.diagnostics import Diagnostics, mean_over_images
from tavq_plugin.losses.point_clouds import PointClouds, pad_levels, point_clouds_of
from tavq_plugin.losses.unique_codes import apply_once_per_code, every_place, merge_repeated_codes
from tavq_plugin.moved import renamed_arguments
from tavq_plugin.ot.solve import Transport, TransportSettings
from tavq_plugin.text.cache import TextCache
from tavq_plugin.types import GRANULARITIES, Codes, TextBatch, TextSource, Units


class TextAlignment(nn.Module):
    """Optimal-transport alignment of quantized codes with text units (TA-VQ, sampling-based alignment).

    For each image and level, codes are projected to the text width by the level's head, normalised, and transported
    onto the level's units (semi-discrete OT). An image without text gives exactly 0, and so does an empty batch. `last`
    holds the diagnostics of the last forward. After `to(torch.bfloat16)` the heads compute in bfloat16 and the
    transport in float32; after `to(torch.float64)` both compute in float64.

    Args:
        tokenizer: The result of `tavq.wrap`, or a code width.
        text_dim: Width of the text embeddings. Default: that of `store` or `encoder`.
        levels: Granularity of each level, fine to coarse. Default: word, phrase, sentence.
        level_weights: One weight per level. Default: 1 each.
        projection: "mlp" or "linear", the kind of each level's head.
        hidden: Width of the mlp's hidden layer. Default: the text width.
        distribution: Which points stand for a level's codes; the kinds of `CodeDistribution`. Default: "all" codes.
        samples: Points per image and level, for the distributions that sample.
        transport: Settings of the solver. Default: `TransportSettings()`.
        contrast: Weight of a contrastive loss over the batch, added to the transport's. Default: 0.
        contrast_on: What the contrast's logits are: cosines of "pooled" codes and texts (`level_contrasts`), or
            "transport" values between every image and every text (`transport_contrast`).
        temperature: The contrast's logits are divided by it.
        encoder: Turns lists of strings into units, on the fly and cached.
        store: Turns lists of ids into units.

    Raises:
        ValueError: A name is unknown, a number is out of range, or the text width is unknown.
    """

    @renamed_arguments(level_weight="level_weights")
    def __init__(
        self,
        tokenizer: Any,
        text_dim: int | None = None,
        *,
        levels: Sequence[str] = GRANULARITIES,
        level_weights: Sequence[float] | None = None,
        projection: str = "mlp",
        hidden: int | None = None,
        distribution: str = "all",
        samples: int = 128,
        transport: TransportSettings | None = None,
        contrast: float = 0.0,
        contrast_on: str = "pooled",
        temperature: float = 0.1,
        encoder: Any = None,
        store: TextSource | None = None,
    ) -> None:
        super().__init__()
        width = tokenizer if isinstance(tokenizer, int) else tokenizer.code_width
        if text_dim is None:
            source = store if store is not None else encoder
            if source is None:
                raise ValueError("the text width is unknown: give text_dim=, encoder= or store=")
            text_dim = source.dim
        unknown = sorted(set(levels) - set(GRANULARITIES))
        if unknown:
            raise ValueError(f"levels holds {unknown}: each must be one of {GRANULARITIES}")
        level_weights = tuple(level_weights or (1.0,) * len(levels))
        if len(level_weights) != len(levels):
            raise ValueError(f"level_weights has {len(level_weights)} entries for {len(levels)} levels: give one each")
        if projection not in ("mlp", "linear"):
            raise ValueError(f'projection={projection!r}: give "mlp" or "linear"')
        self.levels, self.level_weights, self.text_dim, self.width = tuple(levels), level_weights, text_dim, width
        self.transport = transport or TransportSettings()
        if not contrast >= 0:
            raise ValueError(f"contrast must be 0 or more, got {contrast}")
        if contrast_on not in ("pooled", "transport"):
            raise ValueError(f'contrast_on={contrast_on!r}: give "pooled" or "transport"')
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.contrast, self.contrast_on, self.temperature = contrast, contrast_on, temperature
        self.store = store
        self.cache = None if encoder is None else TextCache(encoder)
        self.distribution = nn.ModuleList(CodeDistribution(distribution, width, samples) for _ in levels)
        self.project = nn.ModuleList(_head(projection, width, hidden or text_dim, text_dim) for _ in levels)
        self.last = Diagnostics()

    def embed(self, codes: Tensor, level: int) -> Tensor:
        """Codes as unit points in the text space; b c h w -> b n d. At least float32, whatever the heads are."""
        points = self.distribution[level](codes.to(self._dtype))
        return F.normalize(self.project[level](points.to(self._head_dtype)).to(self._dtype), dim=-1)

    @property
    def _head_dtype(self) -> torch.dtype:
        """That of the heads' weights: what `to` gave them."""
        return next(self.project.parameters()).dtype

    @property
    def _dtype(self) -> torch.dtype:
        """That of points, masses and transport: the heads', at least float32."""
        return torch.promote_types(self._head_dtype, torch.float32)

    def units(self, texts: TextBatch | Sequence[Any]) -> TextBatch:
        """The texts as a TextBatch, made from strings (`encoder=`) or ids (`store=`) if they are not one yet."""
        if isinstance(texts, Mapping):
            return texts
        if isinstance(texts, str):
            raise TypeError("texts must be a list with one text per image, got a single string: pass [text]")
        if self.store is not None:
            return self.store.batch(texts)
        if self.cache is not None:
            return self.cache.batch(cast(Sequence[str], texts), learn=self.training)
        raise ValueError(
            "texts is a list, and this alignment cannot encode it: give encoder= (for strings) or store= (for ids), "
            "or pass a TextBatch"
        )

    def forward(self, codes: Codes, texts: TextBatch | Sequence[str] | Sequence[int]) -> Tensor:
        """Mean loss over the images with text, summed over the levels by weight; Codes, b texts -> scalar.

        Raises ValueError where the numbers of levels or images, or the text widths, differ.
        """
        require_synchronized(self, "align")
        if len(codes.levels) != len(self.levels):
            raise ValueError(
                f"codes have {len(codes.levels)} levels and the alignment {len(self.levels)}: give TextAlignment as "
                "many levels="
            )
        batch = self.units(texts)
        units = [batch[name].to(codes.final.quantized.device) for name in self.levels]
        for level, part, name in zip(codes.levels, units, self.levels, strict=True):
            self._check_units(level.quantized, part, name)
        with torch.autocast(codes.final.quantized.device.type, enabled=False):
            self.last = Diagnostics()  # releases what the former one holds
            points = self._point_clouds(codes)
            text = point_clouds_of(units, points.points.dtype)
            self.last = Diagnostics(text.masses)
            self.last.add_points(points, text, self.transport)
            self.last.add_codes([level.quantized for level in codes.levels])
            value = self.losses(points, text)
        # without a tensor of the weights, whose copy to a GPU would wait for it
        return torch.stack([weight * part for weight, part in zip(self.level_weights, value, strict=True)]).sum()

    def losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's mean loss over the images with text; l b n d, l b m d -> l. Control methods override this."""
        value = self.transport_losses(codes, text)
        return value + self.contrast * self.contrast_losses(codes, text) if self.contrast else value

    def transport_losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's mean transport value over the images with text; l b n d, l b m d -> l."""
        found = transport_clouds(codes, text, self.transport)
        self.last.add_transport(found)
        return mean_over_images(found.value, text.nonempty)

    def contrast_losses(self, codes: PointClouds, text: PointClouds) -> Tensor:
        """Each level's contrastive loss over the batch; l b n d, l b m d -> l."""
        if self.contrast_on == "pooled":
            value = level_contrasts(codes, text, temperature=self.temperature)
        else:
            options = {"temperature": self.temperature, **vars(self.transport)}
            each, trim = [], self.transport.is_adaptive(codes.points.device)
            for index in range(len(self.levels)):
                units, weights = text.level(index, trim=trim)
                each.append(
                    transport_contrast(*codes.level(index, trim=trim), Units(units, weights != 0, weights), **options)
                )
            value = torch.stack(each)
        self.last.add("contrast", value)
        return value

    def match(self, quantized: Tensor, units: Units, level: int) -> Transport:
        """The transport of one level, with a plan over every place; b c h w, b m d -> Transport over b."""
        self._check_units(quantized, units, self.levels[level])
        with torch.autocast(quantized.device.type, enabled=False):
            points = self.embed(quantized, level)
            masses = points.new_full(points.shape[:2], 1 / points.shape[1])
            text = point_clouds_of([units], points.dtype)
            return solve_clouds(PointClouds(points[None], masses[None]), text, vars(self.transport))

    def _point_clouds(self, codes: Codes) -> PointClouds:
        """Every level's codes as points in the text space.

        With an adaptive schedule repeated codes are merged, which is exact. With a fixed one every place is a point,
        and nothing is read back from the device. A place with the index −1 is masked and has no mass.
        """
        if not self.transport.is_adaptive(codes.final.quantized.device):
            return self._point_clouds_of_every_place(codes)
        rows, slots, masses = [], [], []
        for level, distribution, head in zip(codes.levels, self.distribution, self.project, strict=True):
            if distribution.kind == "all":
                merged = merge_repeated_codes(level.quantized, level.indices, level.latent)
                distinct = merged.distinct.to(self._head_dtype)
                rows.append(apply_once_per_code(cast(nn.Sequential, head), distinct, merged.group))
                slots.append(merged.slot)
                masses.append(merged.masses.to(self._dtype))
            else:
                refuse_masked_places(level.indices, cast(str, distribution.kind))
                points = distribution(level.quantized.to(self._dtype))
                rows.append(head(points.flatten(0, 1).to(self._head_dtype)))
                slots.append(torch.arange(len(rows[-1]), device=points.device))
                masses.append(points.new_full(points.shape[:2], 1 / points.shape[1]))
        return pad_levels(F.normalize(torch.cat(rows).to(self._dtype), dim=-1), slots, masses)

    def _point_clouds_of_every_place(self, codes: Codes) -> PointClouds:
        """The same without merging, in shapes that depend on the grids alone."""
        points, masses = [], []
        for level, distribution, head in zip(codes.levels, self.distribution, self.project, strict=True):
            if distribution.kind == "all":
                places, mass = every_place(level.quantized, level.indices)
            else:  # draws from every place, so that an image with a masked one becomes NaN
                places = distribution(level.quantized.to(self._dtype))
                bad = (level.indices < 0).flatten(1).any(1, keepdim=True)
                mass = torch.where(bad, torch.nan, places.new_full(places.shape[:2], 1 / places.shape[1]))
            points.append(head(places.to(self._head_dtype)))
            masses.append(mass.to(self._dtype))
        n = max(part.shape[1] for part in masses)
        padded = torch.stack([F.pad(part, (0, 0, 0, n - part.shape[1])) for part in points])
        padded_masses = torch.stack([F.pad(part, (0, n - part.shape[1])) for part in masses])
        return PointClouds(F.normalize(padded.to(self._dtype), dim=-1), padded_masses)

    def _check_units(self, quantized: Tensor, units: Units, granularity: str) -> None:
        if units.embeddings.shape[-1] != self.text_dim:
            raise ValueError(
                f"{granularity} units have width {units.embeddings.shape[-1]} and the alignment {self.text_dim}: "
                f"give text_dim={units.embeddings.shape[-1]}"
            )
        if len(units.embeddings) != len(quantized):
            raise ValueError(
                f"{len(units.embeddings)} texts for {len(quantized)} images: give one text per image, "
                'in the same order ("" for an image without text)'
            )


def _head(kind: str, width: int, hidden: int, text_dim: int) -> nn.Module:
    if kind == "linear":
        return nn.Sequential(nn.Linear(width, text_dim))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, text_dim))
