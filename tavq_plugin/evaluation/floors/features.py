"""Floors and ceilings: features of images that no tokenizer was trained for, measured by the same probes as codes.

A floor says what a probe reads from almost nothing: colours, a thumbnail, clusters of pixels, an untrained encoder.
Codes that score no higher say no more about the text than that. A ceiling comes from a classifier of real photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tavq_plugin.evaluation.encoded_images import EncodedImages
from tavq_plugin.evaluation.floors.clustered_images import BATCH_SIZE, Vectors, cluster_vectors, encode_by_centroids
from tavq_plugin.hosts.tokenizer import Tokenizer
from tavq_plugin.networks.frozen import Judge, mobilenet, squeezenet
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.side_effects import isolated_random_state

LoadJudge = Callable[[Path | None], Judge]
CEILINGS: dict[str, tuple[str, LoadJudge]] = {
    "mobilenet": ("MobileNetV2", mobilenet),
    "squeezenet": ("SqueezeNet", squeezenet),
}
"""Name → the frozen network's title, and how it is read from a folder of weights."""


class Floor(NamedTuple):
    """Features of one floor, with one level, which is compared with a tokenizer's level 3.

    `train` has no reconstruction and no `quantized`. `held_out.reconstruction` has no rows where the features give no
    image.
    """

    name: str
    title: str
    train: EncodedImages
    held_out: EncodedImages
    codes: int | None  # number of codes; None for continuous features, whose `indices` are [None]


class _Split(NamedTuple):
    """The images of a floor; n 3 h w uint8."""

    train: Tensor
    held_out: Tensor
    transport: Tensor  # positions of the held-out images whose grids are kept


def floors(
    train_images: Tensor,
    held_out_images: Tensor,
    *,
    codes: int,
    grid: int,
    seed: int,
    transport_images: Tensor,
    untrained: Callable[[], Tokenizer] | None,
    weights: Path | None,
    tell: Callable[[str, str], object],
    ceilings: Mapping[str, tuple[str, LoadJudge]] = CEILINGS,
) -> Iterator[Floor]:
    """Each floor in turn, so that only one is in memory; n 3 h w uint8, m 3 h w uint8.

    The names are mean-colour, thumbnail, patch-kmeans, untrained, mobilenet, squeezenet; the last two are ceilings.

    Args:
        train_images: Square images; clusters are fitted on them.
        held_out_images: Images of the same size.
        codes: Number of centroids of both k-means, as many as the tokenizer's level 3 has codes.
        grid: Patches per side of patch k-means, as many as level 3 has places. If it does not divide the resolution,
            the nearest number that does is taken, and the title says so.
        seed: Of the k-means' own random generator.
        transport_images: Ascending positions of the held-out images whose grids are kept as `quantized`.
        untrained: Builds an untrained tokenizer. None: the floor `untrained` is left out.
        weights: Folder with weights of the ceilings' networks; None if there is none.
        tell: Called with the name of each floor that is left out, and the reason.
        ceilings: The networks by name. Default: both, which take about .1 s per image on one core.

    Raises:
        ValueError: The images are not square uint8 images of one size, or a number is too small, or a file of weights
            has another hash.
        FloatingPointError: The untrained encoder's latents hold NaN or infinity.
    """
    for name, images in (("train_images", train_images), ("held_out_images", held_out_images)):
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1:] != (3, *train_images.shape[-1:] * 2):
            raise ValueError(
                f"{name} is {images.dtype} of shape {tuple(images.shape)}: give square images of one size, "
                "n 3 h h uint8, to both"
            )
    if not len(train_images) or not len(held_out_images):
        raise ValueError(f"{len(train_images)} training and {len(held_out_images)} held-out images: give some of both")
    if codes < 2 or grid < 1:
        raise ValueError(f"codes={codes}, grid={grid}: give at least two codes and one place")
    split = _Split(train_images, held_out_images, transport_images)
    return _each_floor(
        split, codes=codes, grid=grid, seed=seed, untrained=untrained, weights=weights, tell=tell, ceilings=ceilings
    )


def _each_floor(
    split: _Split,
    *,
    codes: int,
    grid: int,
    seed: int,
    untrained: Callable[[], Tokenizer] | None,
    weights: Path | None,
    tell: Callable[[str, str], object],
    ceilings: Mapping[str, tuple[str, LoadJudge]],
) -> Iterator[Floor]:
    yield _mean_colour(split)
    yield _thumbnail(split)
    yield _patch_kmeans(split, codes, grid, seed)
    if untrained is None:
        tell("untrained", "no builder of an untrained host was given")
    else:
        with isolated_random_state(torch.device("cpu")):
            tokenizer = untrained()
        yield _untrained_kmeans(split, tokenizer, codes, seed)
    for name, (network, load) in ceilings.items():
        try:
            with isolated_random_state(torch.device("cpu")):  # a network draws weights before it reads its own
                judge = load(weights)
        except (FileNotFoundError, ImportError) as error:
            tell(name, str(error))
            continue
        yield _ceiling(split, name, f"frozen {network}, pooled (ceiling: trained on ImageNet)", judge)


def _mean_colour(split: _Split) -> Floor:
    colours = [_batched(lambda part: _thumbnails(part, 1), images) for images in split[:2]]
    flat = to_uint8(colours[1]).expand_as(split.held_out).clone()
    return _continuous(split, "mean-colour", "mean colour of the image (3 numbers)", *colours, reconstruction=flat)


def _thumbnail(split: _Split) -> Floor:
    small = [_batched(lambda part: _thumbnails(part, 4), images) for images in split[:2]]

    def enlarged(part: Tensor) -> Tensor:
        return to_uint8(F.interpolate(part, split.held_out.shape[-2:], mode="bilinear"))

    title = "4 × 4 thumbnail (48 numbers)"
    return _continuous(split, "thumbnail", title, *small, reconstruction=_batched(enlarged, small[1]))


def _patch_kmeans(split: _Split, codes: int, grid: int, seed: int) -> Floor:
    side = split.train.shape[-1]
    fitting = nearest_divisor(side, grid)
    size = side // fitting

    def patches(images: Tensor) -> Tensor:
        return F.pixel_unshuffle(to_float(images), size)

    def pasted(quantized: Tensor) -> Tensor:
        return to_uint8(F.pixel_shuffle(quantized, size))

    centroids = cluster_vectors(patches, split.train, codes, seed=seed)
    title = f"k-means of {size} × {size} pixel patches, {len(centroids)} centroids"
    if fitting != grid:
        title += f", {fitting} × {fitting} patches because {grid} × {grid} do not divide {side} pixels"
    return _clustered(split, "patch-kmeans", title, patches, centroids, decode=pasted)


def _untrained_kmeans(split: _Split, tokenizer: Tokenizer, codes: int, seed: int) -> Floor:
    tokenizer.eval()
    device = next(tokenizer.parameters()).device

    @torch.no_grad()
    def latents(images: Tensor) -> Tensor:
        return tokenizer.encode(to_float(images.to(device))).final.latent.float().cpu()

    centroids = cluster_vectors(latents, split.train, codes, seed=seed)
    title = f"untrained encoder, k-means of its latents, {len(centroids)} centroids"
    return _clustered(split, "untrained", title, latents, centroids)


def _clustered(
    split: _Split,
    name: str,
    title: str,
    vectors: Vectors,
    centroids: Tensor,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Floor:
    """A floor whose codes are the centroids of the images' vectors."""
    train = encode_by_centroids(vectors, centroids, split.train)
    held_out = encode_by_centroids(vectors, centroids, split.held_out, keep=split.transport, decode=decode)
    return Floor(name, title, train, held_out, len(centroids))


def _ceiling(split: _Split, name: str, title: str, judge: Judge) -> Floor:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge.to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return judge(images.to(device)).features[..., None, None].cpu()

    sides = [_batched(features, images) for images in split[:2]]
    return _continuous(split, name, title, *sides, reconstruction=split.held_out[:0])


def _continuous(
    split: _Split, name: str, title: str, train: Tensor, held_out: Tensor, *, reconstruction: Tensor
) -> Floor:
    """A floor of features without codes; n c h w. Its `pooled` keeps every number: n (c h w)."""
    none = split.train[:0]
    return Floor(
        name,
        title,
        EncodedImages([train.flatten(1)], [train], [None], [train[:0]], none),
        EncodedImages([held_out.flatten(1)], [held_out], [None], [held_out[split.transport]], reconstruction),
        None,
    )


def nearest_divisor(side: int, grid: int) -> int:
    """The divisor of `side` that is nearest to `grid`; the smaller of two that are equally near.

    >>> nearest_divisor(64, 8), nearest_divisor(64, 7), nearest_divisor(64, 12)
    (8, 8, 8)
    """
    return min((n for n in range(1, side + 1) if side % n == 0), key=lambda n: (abs(n - grid), n))


def _thumbnails(images: Tensor, side: int) -> Tensor:
    """Images averaged to side × side, in [-1, 1]; b 3 h w uint8 -> b 3 side side."""
    return F.adaptive_avg_pool2d(to_float(images), side)


def _batched(make: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([make(part) for part in images.split(BATCH_SIZE)])
