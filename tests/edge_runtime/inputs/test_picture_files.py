"""Which picture files are taken, what of them is shown, and what is refused with which words."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.formats.coded_size import is_worth_decoding
from qwen3vl_edge.contract.formats.picture_files import FORMATS, MAX_JPEG_SIDE, client_formats
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import FILE_FORMATS, measure_picture, open_picture

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="needs Pillow 11.3 or later")
SHADES = ((200, 10, 10), (10, 200, 10), (10, 10, 200))


def animation(form: str, frames: int = 3, **options: Any) -> bytes:
    first, *others = [Image.new("RGB", (32, 24), SHADES[index % 3]) for index in range(frames)]
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=others, **options)
    return buffer.getvalue()


ANIMATED = ["GIF", "WEBP", "PNG", "TIFF", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.parametrize("form", ANIMATED)
@pytest.mark.parametrize("frames", [1, 2, 12])
def test_the_first_frame_is_shown_and_the_evidence_says_so(form: str, frames: int, tmp_path: Path) -> None:
    data = animation(form, frames)
    (tmp_path / "file").write_bytes(data)
    for content in (data, tmp_path / "file"):
        seen = measure_picture(content, "it").see()
        assert np.abs(np.asarray(seen.image).astype(int) - SHADES[0]).max() < 8
        assert seen.decoding == ({} if frames == 1 else {"frame": f"first of {frames}"})


def test_frames_of_a_gif_file_with_comments_and_colour_tables() -> None:
    data = animation("GIF", 5, comment=b"c" * 700, loop=0, duration=40)
    assert measure_picture(data, "it").see().decoding == {"frame": "first of 5"}
    for cut in range(len(data)):  # whatever is missing, counting ends
        try:
            picture = measure_picture(data[:cut], "it").see()
        except InputError:
            continue
        assert picture.decoding.get("frame", "") in ("", *(f"first of {count}" for count in range(2, 6)))


def test_the_evidence_has_the_frame_and_the_levels(edge: Edge) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((64, 64), 4000, np.uint16)).save(deep, "PNG")
    pictures = [measure_picture(data, "it") for data in (animation("GIF"), deep.getvalue())]
    messages = [{"role": "user", "content": [{"type": "image", "image": picture} for picture in pictures]}]
    origins = [medium.origin for medium in edge.encode(messages).request.media]
    assert origins[0]["frame"] == "first of 3"
    assert origins[1]["levels"] == "0..65535"


def test_formats_of_clients_are_those_that_can_be_read() -> None:
    assert set(FORMATS) <= set(client_formats()) <= set(FILE_FORMATS)
    assert ("AVIF" in client_formats()) == bool(features.check("avif"))
    opened = Image.new("RGB", (40, 30), (9, 90, 200))
    for form in client_formats():
        buffer = io.BytesIO()
        opened.save(buffer, form)
        assert measure_picture(buffer.getvalue(), "it", client_formats()).decode().size == (40, 30)


def avif(width: int, height: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(options.pop("mode", "RGB")).save(
        buffer, "AVIF", speed=10, **options
    )
    return buffer.getvalue()


def said_to_be(data: bytes, width: int, height: int) -> bytes:
    """The container's size of every item, changed."""
    parts = data.split(b"ispe")
    return b"ispe".join([parts[0], *(part[:4] + struct.pack(">II", width, height) + part[12:] for part in parts[1:])])


@needs_avif
def test_an_avif_file_decodes_to_no_more_than_it_says() -> None:
    """Else some kilobytes could ask for 268 million pixels."""
    small = MediaLimits(max_picture_pixels=10_000)
    data = said_to_be(avif(2048, 2048, quality=1), 64, 64)
    assert Image.open(io.BytesIO(data)).size == (64, 64)
    assert 10 * len(data) < 2048 * 2048 // 16
    with pytest.raises(LimitError, match="frames of about"):
        measure_picture(data, "it", client_formats(), small)
    assert measure_picture(avif(100, 100), "it", client_formats(), small).decode().size == (100, 100)


@needs_avif
@pytest.mark.parametrize("size", [(64, 64), (65, 33), (1, 1), (700, 20), (513, 512)])
def test_what_encoders_write_is_worth_decoding(size: tuple[int, int]) -> None:
    alpha = Image.new("RGBA", size)
    alpha.putalpha(Image.linear_gradient("L").resize(size))
    buffer = io.BytesIO()
    alpha.save(buffer, "AVIF", speed=10, save_all=True, append_images=[alpha.transpose(Image.Transpose.ROTATE_180)])
    for data in (avif(*size), buffer.getvalue()):
        assert is_worth_decoding(data, size[0] * size[1])
        assert not is_worth_decoding(data, size[0] * size[1] // 16 - 1)


@needs_avif
def test_a_cut_avif_file_is_no_surprise() -> None:
    data = avif(40, 30)
    assert is_worth_decoding(data, 1200)
    for cut in range(len(data) // 2):
        with pytest.raises(ValueError, match=r"^it[s ]"):
            is_worth_decoding(data[:cut], 1200)


def test_a_jpeg_file_that_no_decoder_reads_is_too_large_and_not_corrupt() -> None:
    """A panorama: libjpeg stops at 65,500 pixels a side."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 20, MAX_JPEG_SIDE + 1)
    with pytest.raises(LimitError, match=rf"at most {MAX_JPEG_SIDE} pixels a side.*got {MAX_JPEG_SIDE + 1}x20"):
        measure_picture(bytes(data), "it")


@pytest.mark.parametrize(("width", "height"), [(900, 1), (900, 3), (5, 900), (901, 7), (907, 8)])
def test_a_narrow_jpeg_file_is_reduced_by_no_more_than_its_sides(width: int, height: int) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(buffer, "JPEG", quality=1)
    data = buffer.getvalue()
    for most in (1, 50, 500, 1000, 5000):
        # 10 pixels a byte are free, so padding never matters: the limit is the file's.
        limits = MediaLimits(max_picture_pixels=most)
        try:
            picture = measure_picture(data, "it", limits=limits)
        except LimitError:
            continue
        assert picture.decode().size == picture.size


def test_a_picture_that_the_caller_opened_and_closed() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    image = Image.open(buffer)
    image.close()
    with pytest.raises(InputError, match=r"picture \(a PIL image\) is corrupt"):
        open_picture(image).decode()


def test_heic_is_taken_where_pillow_heif_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'qwen3vl-edge[heic]'")
    assert "HEIF" in client_formats()
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (96, 64), SHADES[0])).save(buffer, format="HEIF")
    picture = measure_picture(buffer.getvalue(), "it", client_formats())
    assert picture.size == (96, 64)
    assert np.abs(np.asarray(picture.decode()).astype(int) - SHADES[0]).max() < 10
