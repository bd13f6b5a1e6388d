"""A picture of any mode ends as a person sees it: values by hand, from the formats' own arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen3vl_edge.contract.formats.picture_modes import Levels, as_seen, is_deep_grey, prepare_transparency

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def of_pixels(mode: str, *pixels: tuple[int, ...]) -> Image.Image:
    """One row of pixels, from the mode's own bytes."""
    return Image.frombytes(mode, (len(pixels), 1), bytes(value for pixel in pixels for value in pixel))


def of_values(kind: str, *values: float) -> Image.Image:
    return Image.fromarray(np.array([values], kind))


def sixteen(mode: str, *values: int) -> Image.Image:
    return Image.frombytes(
        mode, (len(values), 1), struct.pack((">" if mode == "I;16B" else "<") + f"{len(values)}H", *values)
    )


def palette(transparency: Any = None, colours: str = "RGB") -> Image.Image:
    """Red, green, blue."""
    image = of_pixels("P", (0,), (1,), (2,))
    if colours == "RGBA":
        image.putpalette([*RED, 255, *GREEN, 0, *BLUE, 128], "RGBA")
    else:
        image.putpalette([*RED, *GREEN, *BLUE])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def with_colour_key(image: Image.Image, key: Any) -> Image.Image:
    image.info["transparency"] = key
    return image


# 128 of 65,535 is 0.498 of a byte, 129 is 0.502, and 32,768 is 127.502.
DEEP, DEEP_SEEN = (0, 128, 129, 257, 32_768, 65_535), grey(0, 0, 1, 1, 128, 255)
# An alpha of 128 leaves 128/255 of the colour and 127/255 of white: 100 becomes 177.2, blue's zeros 127.
CASES: dict[str, list[tuple[Image.Image, list[tuple[int, int, int]]]]] = {
    "1": [
        (of_pixels("L", (0,), (255,)).convert("1"), grey(0, 255)),
        (with_colour_key(of_pixels("L", (0,), (255,)).convert("1"), 0), grey(255, 255)),
    ],
    "L": [
        (of_pixels("L", (0,), (77,), (255,)), grey(0, 77, 255)),
        (with_colour_key(of_pixels("L", (0,), (77,)), 0), grey(255, 77)),
    ],
    "I;16": [
        (sixteen("I;16", *DEEP), DEEP_SEEN),
        (with_colour_key(sixteen("I;16", 0, 257, 258), 257), grey(0, 255, 1)),
    ],
    "I;16L": [(sixteen("I;16L", *DEEP), DEEP_SEEN)],
    "I;16B": [(sixteen("I;16B", *DEEP), DEEP_SEEN)],
    "I;16N": [(sixteen("I;16N", *DEEP), DEEP_SEEN)],
    "I": [
        (of_values("i4", 0, 1, 255), grey(0, 1, 255)),
        (of_values("i4", *DEEP), DEEP_SEEN),
        (of_values("i4", -(2**31), 0, 2**31 - 1), grey(0, 128, 255)),  # 0 lies at 127.5 of 255, above the middle
        (of_values("i4", -100, -100), grey(0, 0)),
    ],
    "F": [
        (of_values("f4", 0, 0.5, 1), grey(0, 128, 255)),
        (of_values("f4", 0, 1.4, 1.6, 255), grey(0, 1, 2, 255)),
        (of_values("f4", 0, 257, 65_535), grey(0, 1, 255)),
        (of_values("f4", -1, 0, 1), grey(0, 128, 255)),
        (of_values("f4", 0, 1e30), grey(0, 255)),
        (of_values("f4", np.nan, 0, np.inf, -np.inf, 1), grey(0, 0, 255, 0, 255)),
        (of_values("f4", np.nan, np.inf), grey(0, 255)),
    ],
    "LA": [(of_pixels("LA", (100, 0), (100, 128), (100, 255)), grey(255, 177, 100))],
    "La": [(of_pixels("La", (0, 0), (50, 128), (100, 255)), grey(255, 177, 100))],
    "P": [
        (palette(), [RED, GREEN, BLUE]),
        (palette(1), [RED, WHITE, BLUE]),
        (palette(b"\xff\x00\x80"), [RED, WHITE, (127, 127, 255)]),
        (palette(colours="RGBA"), [RED, WHITE, (127, 127, 255)]),
    ],
    "PA": [(palette(b"\xff\x00\x80").convert("PA"), [RED, WHITE, (127, 127, 255)])],
    "RGB": [
        (of_pixels("RGB", RED, (1, 2, 3)), [RED, (1, 2, 3)]),
        (with_colour_key(of_pixels("RGB", RED, (1, 2, 3)), (1, 2, 3)), [RED, WHITE]),
    ],
    "RGBX": [(of_pixels("RGBX", (*RED, 0), (1, 2, 3, 9)), [RED, (1, 2, 3)])],
    "RGBA": [(of_pixels("RGBA", (*RED, 255), (*GREEN, 0), (*BLUE, 128)), [RED, WHITE, (127, 127, 255)])],
    "RGBa": [(of_pixels("RGBa", (*RED, 255), (0, 0, 0, 0), (0, 0, 128, 128)), [RED, WHITE, (127, 127, 255)])],
    # (255 - ink) of (255 - black).
    "CMYK": [
        (
            of_pixels("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 128), (128, 0, 0, 128)),
            [WHITE, (0, 255, 255), (127, 127, 127), (63, 127, 127)],
        )
    ],
    # JFIF: red is 76.245, 84.97, 255.5.
    "YCbCr": [(of_pixels("YCbCr", (255, 128, 128), (0, 128, 128), (76, 85, 255)), [WHITE, BLACK, (254, 0, 0)])],
    "HSV": [
        (
            of_pixels("HSV", (0, 255, 255), (85, 255, 255), (170, 255, 255), (9, 0, 77)),
            [RED, GREEN, BLUE, (77, 77, 77)],
        )
    ],
    # sRGB's red in CIE L*a*b* of D50 is 54.29, 80.81, 69.89; L* in 255ths of a hundred, a* and b* signed.
    "LAB": [(of_pixels("LAB", (255, 0, 0), (0, 0, 0), (138, 81, 70)), [WHITE, BLACK, RED])],
}
TOLERANCE = {"La": 1, "RGBa": 1, "YCbCr": 1, "CMYK": 1, "LAB": 6}


def test_every_mode_of_pillow_has_a_case() -> None:
    assert set(Image.MODES) <= set(CASES)


@pytest.mark.parametrize("mode", CASES)
def test_it_ends_as_it_is_seen(mode: str) -> None:
    for image, expected in CASES[mode]:
        assert image.mode == mode
        before = image.tobytes()
        seen, levels = as_seen(image)
        assert seen.mode == "RGB"
        assert np.abs(np.asarray(seen)[0].astype(int) - np.array(expected)).max() <= TOLERANCE.get(mode, 0), expected
        assert not seen.has_transparency_data
        assert image.tobytes() == before
        assert (levels is not None) == is_deep_grey(mode)


def test_rgb_is_not_copied() -> None:
    image = Image.new("RGB", (4, 4))
    assert as_seen(image)[0] is image


def saved(image: Image.Image, form: str, **options: Any) -> Image.Image:
    """Written and read again."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Image.open(buffer)


def values_of(image: Image.Image) -> tuple[list[int], Levels | None]:
    image.load()
    seen, levels = as_seen(image)
    return np.asarray(seen)[0, :, 0].tolist(), levels


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_sixteen_bits_in_a_file(form: str) -> None:
    """Dark values too: the file says that white is 65,535."""
    options = {"irreversible": False} if form == "JPEG2000" else {}
    found, levels = values_of(saved(sixteen("I;16", 0, 128, 129, 257, 2570), form, **options))
    assert found == [0, 0, 1, 1, 10]
    assert str(levels) == "0..65535"


TIFF_TYPES = {"H": 3, "I": 4, "f": 11}


def tiff(
    bits: int, sample_format: int, photometric: int, data: bytes, extra: tuple[tuple[int, str, float], ...] = ()
) -> Image.Image:
    """One row of grey in a TIFF file (TIFF 6.0, section 2)."""
    width = len(data) * 8 // bits
    fields: list[tuple[int, str, float]] = [
        (256, "I", width), (257, "I", 1), (258, "H", bits), (259, "H", 1), (262, "H", photometric), (273, "I", 0),
        (277, "H", 1), (278, "I", 1), (279, "I", len(data)), (339, "H", sample_format), *extra,
    ]  # fmt: skip
    place = 8 + 2 + 12 * len(fields) + 4
    fields[5] = (273, "I", place)
    entries = b"".join(
        struct.pack("<HHI", tag, TIFF_TYPES[kind], 1) + struct.pack("<" + kind, value).ljust(4, b"\0")
        for tag, kind, value in sorted(fields)
    )
    return Image.open(io.BytesIO(b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + data))


def test_levels_that_a_tiff_file_declares() -> None:
    twelve = bytes([0x00, 0x07, 0xFF, 0xFF, 0xF0, 0x00])  # 0, 2047, 4095, 0 in 12 bits each
    sixteen_bits, floats = struct.pack("<3H", 0, 32_768, 65_535), struct.pack("<3f", 0, 0.25, 1)
    assert values_of(tiff(12, 1, 1, twelve)) == ([0, 127, 255, 0], Levels(0, 4095))
    assert values_of(tiff(16, 1, 1, sixteen_bits)) == ([0, 128, 255], Levels(0, 65_535))
    assert values_of(tiff(16, 1, 0, sixteen_bits)) == ([255, 127, 0], Levels(0, 65_535, inverted=True))
    assert values_of(tiff(32, 3, 1, floats)) == ([0, 64, 255], Levels(0, 1))
    assert values_of(tiff(32, 3, 0, floats)) == ([255, 191, 0], Levels(0, 1, inverted=True))
    assert values_of(tiff(32, 3, 1, floats, ((340, "f", 0), (341, "f", 0.5)))) == ([0, 128, 255], Levels(0, 0.5))
    assert values_of(tiff(16, 2, 1, struct.pack("<3h", -32_768, 0, 32_767)))[0] == [0, 128, 255]
    assert values_of(tiff(32, 1, 1, struct.pack("<3I", 0, 32_768, 65_535))) == ([0, 128, 255], Levels(0, 65_535))
    whole = struct.pack("<3I", 0, 2**31, 2**32 - 1)
    assert values_of(tiff(32, 1, 1, whole)) == ([0, 128, 255], Levels(0, 2**32 - 1))
    assert str(Levels(0, 4095)) == "0..4095"
    assert str(Levels(0, 1, inverted=True)) == "1..0"


def test_flat_levels_are_no_division() -> None:
    assert values_of(of_values("f4", -3, -3))[0] == [0, 0]


def png(width: int, bits: int, colour: int, rows: bytes, key: bytes) -> Image.Image:
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)),
        (b"tRNS", key),
        (b"IDAT", zlib.compress(b"\0" + rows)),
        (b"IEND", b""),
    )
    return Image.open(
        io.BytesIO(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        )
    )


def test_the_transparent_colour_of_a_png_file_of_any_depth() -> None:
    """PNG, section 11.3.2.1: it is a sample of the file's own bits."""
    cases = (
        (png(2, 1, 0, b"\x40", struct.pack(">H", 0)), [255, 255]),  # 0 transparent, 1 white
        (png(4, 2, 0, b"\x1b", struct.pack(">H", 2)), [0, 85, 255, 255]),
        (png(2, 4, 0, b"\x05", struct.pack(">H", 5)), [0, 255]),
        (png(2, 8, 0, b"\x00\x05", struct.pack(">H", 5)), [0, 255]),
        (png(2, 16, 0, struct.pack(">2H", 257, 258), struct.pack(">H", 258)), [1, 255]),
        (png(2, 16, 2, struct.pack(">6H", 512, 512, 512, 768, 768, 768), struct.pack(">3H", 768, 768, 768)), [2, 255]),
    )
    for image, expected in cases:
        prepare_transparency(image)
        assert values_of(image)[0] == expected
