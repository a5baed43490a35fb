"""Files of tokens back to images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from einops import rearrange
from PIL import Image
from torch import Tensor

from tavq_plugin.io.atomic import save_bytes, writable
from tavq_plugin.io.ownership import claim
from tavq_plugin.pixels import to_uint8
from tavq_plugin.side_effects import eval_without_trace
from tavq_plugin.use.encode_folder import manifest_of
from tavq_plugin.use.run import Run
from tavq_plugin.use.token_files import FORMATS, TokenFile, read_tokens_file

MAKER = "tavq decode"
LONGEST_NAME = 200  # characters of a file's name


def token_files(place: Path) -> list[Path]:
    """The files of tokens in a folder, or the one file given.

    Raises FileNotFoundError if there are none, and ValueError if the folder is not finished.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileNotFoundError(f"no file or folder {place}: give what tavq encode wrote")
    manifest = manifest_of(place)
    if manifest is None:
        begun = any(path.suffix in FORMATS.values() for path in place.glob("tokens-*"))
        raise ValueError(
            f"{place} is not finished: give the same tavq encode command again, and it resumes"
            if begun
            else f"{place} has no tokens.json: give the folder that tavq encode wrote"
        )
    return [place / name for name in manifest["files"]]


def decode_folder(
    run: Run, tokens: Path, out: Path, *, batch_size: int = 32, progress: Callable[[int], None] | None = None
) -> int:
    """Decode tokens to PNG files that are named by their ids; the number of images.

    Every file is checked before the first image is written. Images that are there already are written again.

    Args:
        run: The one that encoded the images.
        tokens: A folder of `tavq encode`, or one of its files.
        out: Folder of the images.
        batch_size: Images per pass of the decoder.
        progress: Called with the number of images that are decoded so far.

    Raises:
        ValueError: The tokens are those of another tokenizer, are out of range, or cannot be decoded by this host.
        FileNotFoundError: There are no such files.
        FileExistsError: A file that `tavq decode` did not write is in the way.
        FloatingPointError: The decoder gives NaN or infinity.
    """
    paths = token_files(tokens)
    for path in paths:
        refuse_other_tokens(run, path, read_tokens_file(path))
    claim(writable(out), ("*.png",), MAKER)
    done = 0
    with eval_without_trace(run.tokenizer):
        for path in paths:
            file = read_tokens_file(path)
            if not file.ids:
                continue
            final = file.indices[max(file.indices)]
            device = next(run.tokenizer.parameters()).device
            for start in range(0, len(final), batch_size):
                images = run.tokenizer.decode_tokens(final[start : start + batch_size].to(device))
                if not images.isfinite().all():
                    raise FloatingPointError(f"the decoder of {run.folder} gives NaN or infinity: the run is broken")
                for name, image in zip(file.ids[start : start + batch_size], to_uint8(images).cpu(), strict=True):
                    save_bytes(out / file_name(name), _png(image))
                done += len(images)
                if progress is not None:
                    progress(done)
    return done


def refuse_other_tokens(run: Run, path: Path, file: TokenFile) -> None:
    """Raise ValueError if a file's tokens are not those of the run, or no numbers of its codes."""
    theirs, ours = str(file.about.get("fingerprint")), run.fingerprint
    if theirs != ours:
        raise ValueError(
            f"{path} was encoded by another tokenizer ({file.about.get('run')}, fingerprint {theirs[:12]}…) than "
            f"{run.folder} ({ours[:12]}…), whose codebook is another: give the run that encoded it"
        )
    for level, indices in file.indices.items():
        codes = int(file.about["codes"][level - 1])
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < codes:
            raise ValueError(
                f"{path}: the tokens of level {level} run from {int(indices.min())} to {int(indices.max())}, and 0 to "
                f"{codes - 1} was needed: the file was changed or damaged; encode the images again"
            )


def file_name(name: str) -> str:
    """A file name for an id: what has a meaning in paths is escaped, as in addresses, so no two ids share a name.

    >>> file_name("dog.jpg"), file_name("../a/b"), file_name("x" * 300)[:4]
    ('dog.jpg.png', '..%2Fa%2Fb.png', 'xxxx')
    """
    escaped = quote(name, safe=" ()[],+=@")
    if len(escaped) > LONGEST_NAME:
        escaped = f"{escaped[: LONGEST_NAME - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{escaped}.png"


def _png(image: Tensor) -> bytes:
    stream = BytesIO()
    Image.fromarray(rearrange(image, "c h w -> h w c").numpy()).save(stream, "PNG")
    return stream.getvalue()
