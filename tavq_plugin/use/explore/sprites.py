"""What a page holds as text: arrays, packed, and many small images in one sprite."""

from __future__ import annotations

import base64
import math
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

LOSSLESS = 2_000_000  # pixels of a sprite; a larger one is saved as JPEG
QUALITY = 88  # of a JPEG


def packed(values: Tensor) -> str:
    """Whole numbers from 0 to 65,535 as text: low bytes, then high bytes, deflated, in base64; any shape.

    Raises ValueError for other numbers.

    >>> packed(torch.tensor([1, 256]))
    'eJxjZGBgBAAACQAD'
    """
    if values.numel() and not (int(values.min()) >= 0 and int(values.max()) <= 0xFFFF):
        raise ValueError(f"got {values.min()} … {values.max()}: only 0 … 65535 can be packed")
    numbers = values.cpu().numpy().astype(np.uint16).ravel()
    planes = np.concatenate([(numbers & 0xFF).astype(np.uint8), (numbers >> 8).astype(np.uint8)])
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()


def sprite(images: Tensor, *, lossless: bool | None = None) -> dict[str, Any]:
    """One picture of many, in rows from the top left: {"uri", "columns", "side"}; n c h h uint8, c 1 or 3.

    PNG up to `LOSSLESS` pixels, else JPEG, unless `lossless` says which. Without any image, `uri` is "".
    """
    n, channels, side, _ = images.shape
    if not n:
        return {"uri": "", "columns": 1, "side": side}
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    padded = torch.cat([images.cpu(), images.new_zeros(rows * columns - n, channels, side, side).cpu()])
    grid = rearrange(padded, "(r k) c h w -> (r h) (k w) c", k=columns).numpy()
    picture = Image.fromarray(grid if channels == 3 else grid[..., 0])
    if lossless is None:
        lossless = picture.width * picture.height <= LOSSLESS
    file = BytesIO()
    if lossless:
        picture.save(file, "PNG", optimize=False, compress_level=9)
    else:
        picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    kind = "png" if lossless else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"uri": uri, "columns": columns, "side": side}
