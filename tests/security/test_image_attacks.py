"""Attacks by image files: they are refused from their header, in little memory, and start no program."""

import subprocess
import sys
import tracemalloc

import pytest
from PIL import Image

from tavq_plugin.data.images import MAX_PIXELS, open_image

MEASURED = """
import resource, sys
from tavq_plugin.data.images import open_image
import PIL.PngImagePlugin
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_image(sys.argv[1])
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource does not exist on Windows")
def test_an_image_of_89_megapixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (9_460, 9_440)).save(tmp_path / "large.png")  # 89.3 megapixels, below Pillow's own limit
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "large.png"], capture_output=True, text=True, check=True
    )
    message, grown = ran.stdout.splitlines()
    assert "large.png: more pixels than the limit" in message and "TAVQ_MAX_PIXELS" in message
    assert int(grown) < 20_000  # kB


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
    import struct
    import zlib

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
