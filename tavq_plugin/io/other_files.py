"""Say what a file is that was given in place of a checkpoint: a web page, a Git LFS pointer, another format."""

from __future__ import annotations

from pathlib import Path

_STARTS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: export its weights from Keras to a PyTorch checkpoint"),
    (b"GGUF", "a GGUF file, not a PyTorch checkpoint: give the checkpoint that it was made from"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint: give a file of torch.save"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")


def other_file(path: Path) -> str | None:
    """What the file is, if its first bytes show that it is no checkpoint of torch.save, and the mend; else None.

    >>> import tempfile
    >>> page = Path(tempfile.mkdtemp(), "a.ckpt")
    >>> _ = page.write_text("<!DOCTYPE html><title>Sign in</title>")
    >>> other_file(page)
    'a web page, not a checkpoint (a sign-in or error page?): download the file again, from its direct address'
    """
    with path.open("rb") as file:
        start = file.read(512)
    for begin, what in _STARTS:
        if start.startswith(begin):
            return what
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGES):
        return (
            "a web page, not a checkpoint (a sign-in or error page?): download the file again, from its direct address"
        )
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        return "a safetensors file already: give it the ending .safetensors and use it as it is"
    if text.startswith((b'{"', b"{\n", b"{}", b"[{")):
        return "JSON, not a checkpoint: if it lists a checkpoint's parts, give those; if it is an error, fetch it again"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return None
