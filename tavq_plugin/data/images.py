"""Read image files as tensors; a broken or too large file is refused by name."""

from __future__ import annotations

import os
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

from tavq_plugin.data.pixel_range import declared_range, to_eight_bits
from tavq_plugin.io.progress import progress_bar
from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that moved to other files


MAX_PIXELS = 2**26
"""Most pixels of one image; a photograph of 61 megapixels passes, and takes about 0.6 GB while it is read."""
MAX_PIXELS_VARIABLE = "TAVQ_MAX_PIXELS"  # environment variable that sets another limit
_RUNS_PROGRAMS = ("EPS", "WMF")  # formats that Pillow draws with another program, or by the system


def open_image(file: str | Path | bytes | Image.Image, *, max_pixels: int | None = None) -> Image.Image:
    """An upright RGB image on white, from a file, its bytes, or an image that Pillow has opened.

    Values of more than 8 bits are scaled as `to_eight_bits` says. The size is looked at before anything is decoded.
    `max_pixels` is by default that of `pixel_limit`.

    Raises ValueError if it is not an image, is truncated, has too many pixels, or does not say which value is white.
    """
    name = file if isinstance(file, str | Path) else "an image"
    limit = max_pixels or pixel_limit()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here takes its place
            if not isinstance(file, Image.Image):
                file = Image.open(BytesIO(file) if isinstance(file, bytes) else file)
            with file as opened:
                if opened.width * opened.height > limit:
                    raise Image.DecompressionBombError(f"{opened.width} × {opened.height} are more than {limit:,}")
                if opened.format in _RUNS_PROGRAMS:
                    raise ValueError(f"{opened.format} files are drawings that are run like a program: save a PNG")
                declared = declared_range(opened)
                picture = to_eight_bits(ImageOps.exif_transpose(opened), declared)
                if not picture.has_transparency_data:
                    return picture.convert("RGB")
                picture = picture.convert("RGBA")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name}: more pixels than the limit for images ({error}); shrink it or leave it out, or, if you trust it, "
            f"set the environment variable {MAX_PIXELS_VARIABLE} (Pillow's own limit is "
            f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,})"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image that Pillow knows; replace it or leave it out") from error
    except (OSError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error) as error:
        # whatever Pillow raises
        raise ValueError(f"{name}: cannot be read ({error}); is it truncated? Replace it or leave it out") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: cannot be read ({error}); replace it or leave it out") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def pixel_limit() -> int:
    """The most pixels of one image: the environment variable TAVQ_MAX_PIXELS, or else the lower of two limits.

    They are `MAX_PIXELS` and Pillow's own `Image.MAX_IMAGE_PIXELS`.
    """
    given = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if given and not (given.isascii() and given.isdigit() and int(given) > 0):
        raise ValueError(f"{MAX_PIXELS_VARIABLE} is {given!r}: give a whole number of pixels above 0")
    return int(given) if given else min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)


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
