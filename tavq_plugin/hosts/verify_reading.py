"""Check what was inferred about a host against one run of it: what fails is refused with what mends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.trial_run import HostReading, describe
from tavq_plugin.types import GradTo, Quantized

TOLERANCE = 1e-3  # largest difference of vectors and codebook rows, as a share of the largest entry
MOVED = 0.5  # the same where the forward pass itself moves the codebook, as an EMA does
PLACE_RATIO = 1.5  # how much more a change of a half of the image must change the same half of a feature map
SMALLEST_MAP = 8  # places a side; smaller maps are not judged, as each of their places may see the whole image
READS = "parse= (or the quantizer's adapter)"


def verify_quantized(adapter: Adapter, reading: HostReading, table: Tensor | None) -> None:
    """Raise ValueError unless the quantizer's call is read as `Quantized` means it, and the vectors are the codebook's.

    Args:
        adapter: The host's.
        reading: One run of the host.
        table: The codebook that will be looked up, k c; None where none will be.
    """
    final = reading.final
    if not (isinstance(final, Quantized) and isinstance(final.vectors, Tensor) and isinstance(final.indices, Tensor)):
        raise ValueError(
            f"{READS} returned {describe(final)}, and Quantized(vectors, indices, loss) with tensors was needed: "
            "return tavq.Quantized(vectors=..., indices=..., loss=...)"
        )
    _verify_shapes(final, len(reading.images), None if table is None else table.shape[1])
    low, high = int(final.indices.min()), int(final.indices.max())
    if low < 0 or (table is not None and high >= len(table)):
        codes = "" if table is None else f" for a codebook of {len(table)} codes (k c = {tuple(table.shape)})"
        raise ValueError(
            f"the indices run from {low} to {high}{codes}, and 0 to k - 1 was needed: let {READS} return the numbers "
            "of the codebook's rows"
        )
    if final.looked_up is not None:
        _verify_looked_up(reading, final.looked_up)
    elif table is not None:
        _verify_rows(adapter, reading, table)


def _verify_shapes(final: Quantized, images: int, width: int | None) -> None:
    vectors, indices = final.vectors, final.indices
    if vectors.ndim != 4 or not vectors.is_floating_point() or len(vectors) != images:
        raise ValueError(
            f"the vectors are {describe(vectors)} for {images} images, and b c h w was needed: rearrange them in "
            f"{READS}; a video or volume is not supported"
        )
    last = width is not None and vectors.shape[1] != width == vectors.shape[3]
    if last or (indices.shape == vectors.shape[:3] and indices.shape != vectors[:, 0].shape):
        raise ValueError(
            f"the vectors are b h w c ({describe(vectors)}, indices {describe(indices)}), and b c h w was needed: let "
            f"{READS} return vectors.movedim(-1, 1), and the same of its input as latent="
        )
    if width is not None and vectors.shape[1] != width:
        raise ValueError(
            f"the quantizer's vectors have width {vectors.shape[1]} and its codebook {width}: correct quantizer= or "
            'parse= for this host, or give codebook="own", codebook_size=, grad_to="encoder"'
        )
    if indices.dtype != torch.int64 or indices.shape != vectors[:, 0].shape:
        b, _, h, w = vectors.shape
        raise ValueError(
            f"the indices are {describe(indices)}, and int64 {b} {h} {w} (b h w, the vectors' grid) was needed: let "
            f"{READS} return indices.long().view(len(vectors), *vectors.shape[2:]), which is {h} × {w} here"
        )


def _verify_looked_up(reading: HostReading, looked_up: Tensor) -> None:
    """Refuse codes that the user says make up the vectors, if they do not."""
    vectors = reading.final.vectors
    if looked_up.shape != vectors.shape:
        raise ValueError(
            f"looked_up= of {READS} is {describe(looked_up)}, and the vectors' {describe(vectors)} was needed"
        )
    if vectors.isfinite().all() and not equals_vectors(looked_up, reading):
        raise ValueError(
            f"looked_up= of {READS} differs from the vectors by up to {_difference(looked_up, reading.final):.3g}, and "
            "the same values were needed: return the codes that make up the vectors, with gradient to the codebook"
        )


def verify_rows_in_training(adapter: Adapter, reading: HostReading, again: Callable[[], HostReading]) -> None:
    """Raise ValueError unless the vectors are the codebook's rows in training mode too.

    Not compared are sums of several codes, codes that are soft in training (Gumbel), and `looked_up` ones, which may be
    computed after an EMA moved them.

    Args:
        adapter: The host's.
        reading: One run of the host in training mode.
        again: Gives another one, by which a quantizer that starts itself in its first such run (k-means) is judged.
    """
    verify_quantized(adapter, reading, None)
    if not adapter.straight_through or reading.table is None or reading.final.looked_up is not None:
        return
    moves = not reading.table.requires_grad or getattr(_quantizer_of(adapter), "moves_codebook", False)
    try:
        _verify_rows(adapter, reading, reading.table, tolerance=MOVED if moves else TOLERANCE)
    except ValueError:
        reading = again()
        assert reading.table is not None  # it was there in the first run
        _verify_rows(adapter, reading, reading.table, tolerance=MOVED if moves else TOLERANCE)


def _quantizer_of(adapter: Adapter) -> object:
    return getattr(adapter, "quantizer_adapter", adapter)


def _verify_rows(adapter: Adapter, reading: HostReading, table: Tensor, *, tolerance: float = TOLERANCE) -> None:
    """Refuse indices, vectors and a codebook that do not belong together."""
    final = reading.final
    if not final.vectors.isfinite().all():  # nothing can be compared; whoever reads the codes says that they are NaN
        return
    if getattr(_quantizer_of(adapter), "sums_lookups", False):
        return
    former = reading.former_table if reading.former_table is not None else table
    if any(equals_vectors(look_up(final.indices, rows), reading, tolerance) for rows in (table, former)):
        return
    found = _named_variants(table, reading)
    mode = " in training mode" if reading.training else ""
    raise ValueError(
        f"the vectors are not the codebook's rows at the indices{mode}: they differ by up to "
        f"{_difference(look_up(final.indices, table), final):.3g}, with entries of up to "
        f"{float(final.vectors.detach().abs().max()):.3g}{found}. Fix: if the indices are wrong, correct {READS}; if "
        "the vectors are sums of several codes (residual stages, scales), return those as Quantized(..., looked_up=); "
        "if the host looks up a table that it computes, give codebook=, a function of the host such as lambda host: "
        'host.vq.codes(), or codebook="own", codebook_size=, grad_to="encoder"'
    )


def verify_latent(reading: HostReading, grad_to: GradTo, *, straight_through: bool) -> None:
    """Raise ValueError if the latent, which passes the gradient on in the vectors' place, has not their shape."""
    latent, vectors = reading.latent, reading.final.vectors
    if grad_to == "both" and straight_through and (not isinstance(latent, Tensor) or latent.shape != vectors.shape):
        raise ValueError(
            f"what was quantized is {describe(latent)} and the vectors are {describe(vectors)}, and the same shape was "
            f"needed: let {READS} return Quantized(..., latent=), b c h w, the tensor that the codes are compared with"
        )


def look_up(indices: Tensor, table: Tensor) -> Tensor:
    """The rows at the indices, without gradient; b h w, k c -> b c h w."""
    return rearrange(F.embedding(indices.clamp(0, len(table) - 1), table.detach()), "b h w c -> b c h w")


def equals_vectors(rows: Tensor, reading: HostReading, tolerance: float = TOLERANCE) -> bool:
    """Whether these rows are the vectors at every place, up to the tolerance and rounding; b c h w."""
    return bool(within_tolerance(rows, reading.final, reading.latent, tolerance))


def within_tolerance(rows: Tensor, final: Quantized, latent: object, tolerance: float) -> Tensor:
    """A scalar bool, on the device: whether rows and vectors differ by at most `tolerance` of the largest entry.

    A straight-through z + (e − z) rounds as coarsely as z, so that rounding is allowed for.
    """
    vectors = final.vectors.detach()
    other = latent.detach() if isinstance(latent, Tensor) and latent.is_floating_point() else vectors
    rounding = max(torch.finfo(tensor.dtype).eps for tensor in (vectors, rows, other))
    largest = vectors.abs().max().double()
    allowed = tolerance * largest + 4 * rounding * (largest + other.abs().max().double())
    return (rows.detach().double() - vectors.double()).abs().max() <= allowed


def _difference(rows: Tensor, final: Quantized) -> float:
    return float((rows.detach().double() - final.vectors.detach().double()).abs().max())


def _named_variants(table: Tensor, reading: HostReading) -> str:
    """How the vectors can be had from the table, if in one of the usual ways; for an error."""
    indices = reading.final.indices
    variants = {"of length 1 (L2-normalised)": F.normalize(table, dim=1)}
    if table.shape[0] == table.shape[1]:
        variants["of the transposed table"] = table.T
    for name, variant in variants.items():
        if equals_vectors(look_up(indices, variant), reading):
            return f"; they are rows {name}"
    turned = reading.final.vectors.movedim(-1, 1)
    if turned.shape == reading.final.vectors.shape:
        final = reading.final._replace(vectors=turned, latent=turned)
        if equals_vectors(look_up(indices, table), reading._replace(final=final)):
            return "; they are b h w c, and b c h w was needed: vectors.movedim(-1, 1)"
    return ""


def verify_taps(adapter: Adapter, reading: HostReading) -> None:
    """Raise ValueError unless two different taps run before the quantizer, the finer first."""
    if len(set(adapter.taps)) < len(adapter.taps):
        raise ValueError(
            f"taps= names {adapter.taps[0]!r} twice: name two modules of the encoder, fine to coarse. A module that "
            "the host runs several times has one path: tap modules around it"
        )
    order = list(reading.seen)
    for path in adapter.taps:
        if path == adapter.quantizer or order.index(path) > order.index(adapter.quantizer):
            raise ValueError(
                f"tap {path!r} runs after the quantizer {adapter.quantizer!r}: name modules of the encoder in taps=, "
                "fine to coarse"
            )
    grids = [tuple(feature.shape[2:]) for feature in (*reading.features, reading.final.vectors)]
    names = [*adapter.taps, adapter.quantizer]
    for index in range(len(grids) - 1):
        (h, w), (next_h, next_w) = grids[index], grids[index + 1]
        if h * w < next_h * next_w and next_h > 1:  # a 1 × n grid is no map of the image
            raise ValueError(
                f"{names[index]!r} has a {h}×{w} grid and {names[index + 1]!r} a finer one, {next_h}×{next_w}: give "
                "taps= from fine to coarse, both at least as fine as the quantizer's grid"
            )


def halves_swapped(images: Tensor) -> Tensor:
    """Two images and two mixtures of them; 2 c h w -> 4 c h w.

    The third has the left half of the second and the right half of the first, the fourth their top and bottom halves.
    """
    first, second = images
    _, h, w = first.shape
    by_side = torch.cat([second[..., : w // 2], first[..., w // 2 :]], dim=-1)
    by_height = torch.cat([second[..., : h // 2, :], first[..., h // 2 :, :]], dim=-2)
    return torch.stack([first, second, by_side, by_height])


class PositionProblem(NamedTuple):
    """A tap that gives no map of the image."""

    path: str
    text: str


def position_problem(path: str, feature: Tensor) -> PositionProblem | None:
    """What is wrong unless a change of a half of the image changes the same half of the feature most; else None.

    Attention weights (b heads n n), token mixtures and transposed maps fail, whatever their shape. Positional
    embeddings and padding do not matter, as they would for a shifted image.

    Args:
        path: Of the tapped module.
        feature: Its map of `halves_swapped` images, 4 c h w.
    """
    if min(feature.shape[2:]) < SMALLEST_MAP:
        return None
    for name, mixed, axis in (("left", 2, -1), ("top", 3, -2)):
        ratio = place_ratio(feature, mixed, axis)
        if ratio < PLACE_RATIO:
            return PositionProblem(
                path,
                f"tap {path!r} gives {describe(feature)}, which is no map of the image: new content in its {name} "
                f"half changes that half of the map only {ratio:.2g} times as much as the other half (at least "
                f"{PLACE_RATIO} was needed). Attention weights (b heads n n) look like this: name a module whose "
                "output is a feature map in taps=, and give layout= if its axes are not b c h w",
            )
    return None


def place_ratio(feature: Tensor, mixed: int, axis: int) -> float:
    """How much more the changed half of the image changes its own half of the map than the other; 4 c h w -> scalar.

    The geometric mean over both halves; 1 means that the map does not follow the image.
    """
    feature = feature.detach().double()
    size = feature.shape[axis]
    half = size // 2
    amounts = []
    for unchanged in (0, 1):  # the mixture has the right (bottom) half of the first, the left (top) of the second
        change = (feature[mixed] - feature[unchanged]).square()
        near, far = change.narrow(axis, 0, half).mean(), change.narrow(axis, size - half, half).mean()
        amounts.append((near, far) if unchanged == 0 else (far, near))
    own = amounts[0][0] * amounts[1][0]
    other = amounts[0][1] * amounts[1][1]
    if other == 0:
        return float("inf")  # perfectly local, or a feature that is constant as yet (weights that start at 0)
    return float((own / other).sqrt())
