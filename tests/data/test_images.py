"""Image files of every mode are read; broken ones are refused by name."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tavq_plugin.data.images import load_images, read_image
from tavq_plugin.pixels import to_float


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((12, 20), 65535, dtype=np.uint16)).save(path)
    else:
        Image.new("RGB", (20, 12), "white").convert(mode).save(path)
    read = read_image(path, 8)
    assert read.shape == (3, 8, 8) and read.dtype == torch.uint8 and read.min() > 250


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 8) == 255).all()


def test_the_centre_is_kept(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 8) == 255).all()


def test_a_photo_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (8, 8))
    picture.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png", 8)
    assert read[:, 0].max() == 0 and read[:, 7].min() == 255


def test_broken_files_are_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.jpg: cannot be read .*truncated"):
        load_images([tmp_path / "a.jpg", tmp_path / "half.jpg"], 8, progress=False)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png: not an image"):
        read_image(tmp_path / "text.png", 8)
    Image.new("L", (8, 8)).save(tmp_path / "bomb.png")
    png = (tmp_path / "bomb.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + png[24:29]  # says that the image is this large
    (tmp_path / "bomb.png").write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    with pytest.raises(ValueError, match="bomb.png: more pixels than the limit for images"):
        read_image(tmp_path / "bomb.png", 8)


def test_eight_bit_maps_to_the_unit_range():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
