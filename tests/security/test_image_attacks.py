"""Attacks by image files: they are refused from their header, in little memory, and start no program."""

import struct
import tracemalloc
import zlib

import pytest
from PIL import Image

from tavq_plugin.data.images import MAX_PIXELS, open_image


def png_of(width, height):
    """The header of a PNG of this size, without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + IDAT


IDAT = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("size", [(9_460, 9_440), (8_193, 8_193), (30_000, 30_000)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, size):
    (tmp_path / "large.png").write_bytes(png_of(*size))  # decoding it would find that its pixels are missing
    with pytest.raises(ValueError, match=r"large.png: more pixels than the limit.*TAVQ_MAX_PIXELS"):
        open_image(tmp_path / "large.png")
    (tmp_path / "small.png").write_bytes(png_of(30, 20))
    with pytest.raises(ValueError, match=r"small.png: cannot be read"):
        open_image(tmp_path / "small.png")


def test_the_limit_of_pixels_is_a_setting(tmp_path, monkeypatch):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", max_pixels=600).size == (30, 20)
    with pytest.raises(ValueError, match="30 × 20 are more than 599"):
        open_image(tmp_path / "a.png", max_pixels=599)
    monkeypatch.setenv("TAVQ_MAX_PIXELS", "599")
    with pytest.raises(ValueError, match="30 × 20 are more than 599"):
        open_image(tmp_path / "a.png")
    monkeypatch.setenv("TAVQ_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="TAVQ_MAX_PIXELS is 'many'"):
        open_image(tmp_path / "a.png")
    assert MAX_PIXELS > 61_000_000  # the largest sensor of a 35 mm camera


def test_postscript_under_the_name_of_a_png_is_not_run(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / "a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
        f"({victim}) (w) file closefile\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ValueError, match="a.png: .*EPS files are drawings that are run like a program"):
        open_image(tmp_path / "a.png")
    assert not victim.exists()


def test_a_compressed_comment_takes_no_memory(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    body = b"Comment\0\0" + zlib.compress(bytes(50_000_000))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cannot be read"):
            open_image(png[:33] + chunk + png[33:])
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
