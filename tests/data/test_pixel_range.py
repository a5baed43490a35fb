"""Every mode of Pillow shows a known ramp, or is refused; an image is never silently black or white."""

import io

import numpy as np
import pytest
from PIL import Image

from tavq_plugin.data.images import open_image

RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
GRAY = np.round(RAMP * 255).astype(np.uint8)


def seen(picture):
    """What `open_image` makes of a ramp: 8 × 64 values of one channel, which all must share."""
    values = np.asarray(open_image(picture)).astype(int)
    assert values.shape == (8, 64, 3)
    return values


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_eight_bits_show_the_ramp(mode):
    picture = Image.fromarray(GRAY)
    picture = picture.convert({"RGBa": "RGBA", "P": "L", "PA": "L"}.get(mode, "RGB")).convert(mode)
    off = np.abs(seen(picture) - GRAY[..., None].astype(int))
    assert off.max() <= (255 if mode == "1" else 3) and (mode != "1" or 80 < seen(picture).mean() < 180)


def test_lab_shows_the_gray_of_each_lightness():
    lab = np.stack([GRAY, *[np.zeros_like(GRAY)] * 2], -1)  # as in a file, where 0 is neutral
    gray = seen(Image.frombytes("LAB", (64, 8), lab.tobytes())).mean(axis=(0, 2))
    lightness = RAMP[0].astype(float) * 100
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    wanted = np.where(luminance > 0.0031308, 1.055 * luminance ** (1 / 2.4) - 0.055, 12.92 * luminance) * 255
    assert np.abs(gray - wanted).max() < 3


def test_a_mode_that_pillow_cannot_convert_is_refused():
    with pytest.raises(ValueError, match="mode La"):
        open_image(Image.new("La", (64, 8)))


def saved(tmp_path, name, values, **options):
    Image.fromarray(values).save(tmp_path / name, **options)
    return tmp_path / name


DEEP = {
    "16 bits.png": lambda: np.round(RAMP * 65535).astype(np.uint16),
    "16 bits.tif": lambda: np.round(RAMP * 65535).astype(np.uint16),
    "16 bits.pgm": lambda: np.round(RAMP * 65535).astype(np.uint16),
    "16 bits big.tif": lambda: np.round(RAMP * 65535).astype(">u2"),
    "float to 1.tif": lambda: RAMP,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_files_show_the_ramp(tmp_path, name):
    off = np.abs(seen(saved(tmp_path, name, DEEP[name]())) - GRAY[..., None].astype(int))
    assert off.max() <= 1


def test_the_maximum_of_a_pgm_is_its_white(tmp_path):
    values = np.round(RAMP * 4095).astype(">u2")
    (tmp_path / "12.pgm").write_bytes(b"P5 64 8 4095\n" + values.tobytes())
    assert np.abs(seen(tmp_path / "12.pgm") - GRAY[..., None].astype(int)).max() <= 1


def test_declared_bits_and_the_declared_maximum_of_a_tiff_are_its_white(tmp_path):
    twelve = np.round(RAMP * 4095).astype(np.uint16)
    file = saved(tmp_path, "max.tif", twelve, tiffinfo={281: 4095})
    assert np.abs(seen(file) - GRAY[..., None].astype(int)).max() <= 1
    assert np.abs(seen(packed_twelve_bits(tmp_path, twelve)) - GRAY[..., None].astype(int)).max() <= 1


def packed_twelve_bits(tmp_path, values):
    """A TIFF of 12 bits per sample, two samples in three bytes."""
    import struct

    first, second = values.ravel()[::2].astype(int), values.ravel()[1::2].astype(int)
    data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = [(256, 4, 64), (257, 4, 8), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 8),
            (279, 4, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    (tmp_path / "12.tif").write_bytes(header + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0")
    return tmp_path / "12.tif"


def test_zero_is_white_where_a_tiff_says_so(tmp_path):
    file = saved(tmp_path, "inverted.tif", np.round((1 - RAMP) * 65535).astype(np.uint16))
    data = bytearray(file.read_bytes())
    at = data.index((262).to_bytes(2, "little") + b"\x03\x00")
    data[at + 8] = 0  # photometric interpretation: WhiteIsZero
    assert np.abs(seen(bytes(data)) - GRAY[..., None].astype(int)).max() <= 1


UNCLEAR = {
    "int32, 8 bits used.tif": lambda: np.round(RAMP * 255).astype(np.int32),
    "int32.tif": lambda: np.round(RAMP * 65535).astype(np.int32),
    "10 bits.png": lambda: np.round(RAMP * 1023).astype(np.uint16),
    "12 bits.png": lambda: np.round(RAMP * 4095).astype(np.uint16),
    "14 bits.png": lambda: np.round(RAMP * 16383).astype(np.uint16),
    "12 bits.tif": lambda: np.round(RAMP * 4095).astype(np.uint16),
    "float to 255.tif": lambda: RAMP * 255,
    "float to 65535.tif": lambda: RAMP * 65535,
    "float below 0.tif": lambda: RAMP * 2 - 1,
    "not a number.tif": lambda: np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_an_unclear_range_is_refused_with_the_file_and_the_mend(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: .*(scale|save)"):
        open_image(saved(tmp_path, name, UNCLEAR[name]()))


def test_twelve_bits_in_the_channels_of_a_colour_image_are_refused(tmp_path):
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def png(top):
        rows = np.round(np.repeat(RAMP[..., None], 3, 2) * top).astype(">u2")
        body = b"".join(b"\0" + row.tobytes() for row in rows)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 8, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(body))
            + chunk(b"IEND", b"")
        )

    assert np.abs(seen(png(65535)) - GRAY[..., None].astype(int)).max() <= 1
    with pytest.raises(ValueError, match="fewer bits than it declares"):
        open_image(png(4095))


def test_an_image_that_is_all_black_stays_black(tmp_path):
    assert seen(saved(tmp_path, "black.png", np.zeros((8, 64), np.uint16))).max() == 0


def test_a_truncated_deep_image_is_refused_by_name(tmp_path):
    file = saved(tmp_path, "cut.tif", np.round(RAMP * 65535).astype(np.uint16))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match="cut.tif: cannot be read"):
        open_image(file)


def test_a_picture_in_memory_is_read_like_its_file():
    buffer = io.BytesIO()
    Image.fromarray(np.round(RAMP * 65535).astype(np.uint16)).save(buffer, "PNG")
    assert np.array_equal(seen(Image.open(io.BytesIO(buffer.getvalue()))), seen(buffer.getvalue()))
