"""Read image files as tensors; a broken or too large file is refused by name."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tavq_plugin.io.progress import progress_bar
from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that moved to other files


def open_image(file: str | Path | bytes | Image.Image) -> Image.Image:
    """An upright RGB image on white, from a file, its bytes, or an image that Pillow has opened.

    Raises ValueError if it is not an image, is truncated, or has more pixels than Pillow's bomb limit.
    """
    name = file if isinstance(file, str | Path) else "an image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not isinstance(file, Image.Image):
                file = Image.open(BytesIO(file) if isinstance(file, bytes) else file)
            with file as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):  # 16 bit: Pillow would clip at 255
                    picture = Image.fromarray(
                        (np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)
                    )
                picture = picture.convert("RGBA")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name}: more pixels than the limit for images ({error}); shrink it or leave it out"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image that Pillow knows; replace it or leave it out") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:  # whatever Pillow raises
        raise ValueError(f"{name}: cannot be read ({error}); is it truncated? Replace it or leave it out") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def read_image(file: str | Path | bytes | Image.Image, resolution: int) -> Tensor:
    """One image by `open_image`: shorter side resized (bicubic, antialiased), centre-cropped; -> 3 r r uint8."""
    picture = ImageOps.fit(open_image(file), (resolution, resolution), Image.Resampling.BICUBIC)
    return rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w")


def load_images(paths: Sequence[str | Path], resolution: int, *, progress: bool = True) -> Tensor:
    """Images in memory; n paths -> n 3 r r uint8. Raises ValueError with the name of the first broken file."""
    images = torch.empty(len(paths), 3, resolution, resolution, dtype=torch.uint8)
    with progress_bar(shown=progress) as bar:
        for i, path in enumerate(bar.track(paths, description="reading images")):
            images[i] = read_image(path, resolution)
    return images
