"""The batches of a run: its images are kept as bytes on the training device, where batches are cut and flipped."""

from __future__ import annotations

import torch
from torch import Tensor

from tavq_plugin.hosts.summary import logger
from tavq_plugin.pixels import to_float
from tavq_plugin.training.sampler import BatchSampler, rows_of_rank

FREE_SHARE = 0.25  # of a GPU's free memory that the images may take


class ImageBatches:
    """Rows of a step, and their images on the training device as floats in [-1, 1]; nothing waits for the device.

    The order of the rows and the flips are drawn on the CPU from the seed and the step's number alone, so a run sees
    the same batches on every device, in any number of processes, and when it is resumed.

    Args:
        images: The training images, n 3 r r uint8.
        sampler: Gives the rows of each step.
        device: Where the batches are used.
        at_most: Bytes of images that may stay on a GPU; more stay in the CPU's memory, and each batch is copied.
        flip: If true, half of the images, drawn anew in each step, are mirrored left to right.
    """

    def __init__(
        self, images: Tensor, sampler: BatchSampler, device: torch.device, *, at_most: float, flip: bool = False
    ) -> None:
        self.sampler, self.device, self.flip = sampler, device, flip
        self.images = on_device(images, device, at_most=at_most)

    def rows(self, number: int, *, passes: int, ranks: int, rank: int) -> list[tuple[Tensor, Tensor | None]]:
        """The rows of one rank in each pass of step `number`, on the CPU, and which of them are flipped; b, b bool."""
        rows = self.sampler(number)
        split = {"passes": passes, "ranks": ranks, "rank": rank}
        parts = rows_of_rank(rows, **split)
        if not self.flip:
            return [(part, None) for part in parts]
        draw = torch.Generator().manual_seed(self.sampler.seed * 1_000_003 + number)
        flips = torch.rand(len(rows), generator=draw) < 0.5
        return list(zip(parts, rows_of_rank(flips, **split), strict=True))

    def cut(self, rows: Tensor, flipped: Tensor | None = None) -> Tensor:
        """The images of some rows; b, b bool -> b 3 r r in [-1, 1] on the device."""
        images = self.images[_sent(rows, self.images.device)]
        if images.device.type != self.device.type:
            images = _sent(images.pin_memory() if self.device.type == "cuda" else images, self.device)
        if flipped is not None:
            images = torch.where(_sent(flipped, self.device)[:, None, None, None], images.flip(3), images)
        return to_float(images)


def on_device(images: Tensor, device: torch.device, *, at_most: float) -> Tensor:
    """The images on a GPU, if they take at most so many bytes and `FREE_SHARE` of its free memory; else as they are."""
    size = images.numel() * images.element_size()
    if device.type == "cpu" or size > at_most:
        return images
    if device.type == "cuda" and size > FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        logger.info("the images (%.1f GB) stay off the GPU, whose free memory they would fill", size / 1e9)
        return images
    return images.to(device)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the CPU does not wait for the copy."""
    return tensor.to(device, non_blocking=True)
