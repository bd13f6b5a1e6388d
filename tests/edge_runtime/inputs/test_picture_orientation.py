"""Pictures are turned as their EXIF says, at every door and in every format, as transformers' own loader turns them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features
from transformers.image_utils import load_image

from qwen3vl_edge.contract.formats.heif_boxes import container_orientation
from qwen3vl_edge.contract.formats.picture_files import client_formats
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.edge_runtime.inputs.lean.processor import prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.prompt import Prompt, prepare_prompt
from qwen3vl_edge.edge_runtime.inputs.sources.clips import open_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import measure_picture, open_image, open_picture
from qwen3vl_edge.server.openai.pixels import open_data_uri
from qwen3vl_edge.tools.parity.pictures import pictures_of
from tests.support.http_api.chat import data_uri

Pixels = NDArray[np.uint8]
# Exif 2.32, 4.6.4: where the file's first row and its first column belong.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda rows: rows,  # top, left
    2: lambda rows: rows[:, ::-1],  # top, right
    3: lambda rows: rows[::-1, ::-1],  # bottom, right
    4: lambda rows: rows[::-1],  # bottom, left
    5: lambda rows: rows.transpose(1, 0, 2),  # left, top
    6: lambda rows: rows.transpose(1, 0, 2)[:, ::-1],  # right, top
    7: lambda rows: rows.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda rows: rows.transpose(1, 0, 2)[::-1],  # left, bottom
}
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
LOSSY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}}
if features.check("avif"):
    LOSSY["AVIF"] = {"quality": 95, "subsampling": "4:4:4"}
if "HEIF" in client_formats():
    LOSSY["HEIF"] = {"quality": 95, "chroma": 444}
needs_heif = pytest.mark.skipif("HEIF" not in LOSSY, reason="needs pillow-heif: pip install 'qwen3vl-edge[heic]'")
RAW = MediaLimits(exif_orientation=False)


def drawn(width: int = 96, height: int = 64) -> Pixels:
    """Smooth, with four different corners."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, (255 - x) / 2 + y / 4], -1).astype(np.uint8)


def file_of(rows: Pixels, form: str, orientation: int | None) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    # Of bytes pillow-heif makes a turn of the container, of an Exif object it does not.
    metadata = exif.tobytes() if form == "HEIF" else exif
    Image.fromarray(rows).save(buffer, form, exif=metadata, **(LOSSLESS | LOSSY)[form])
    return buffer.getvalue()


@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_it_is_turned(form: str, orientation: int, tmp_path: Path) -> None:
    rows = drawn()
    data = file_of(rows, form, orientation)
    path = tmp_path / f"picture.{form.lower()}"
    path.write_bytes(data)
    expected, tolerance = UPRIGHT[orientation](rows), 0 if form in LOSSLESS else 8
    picture = measure_picture(data, "it")
    seen = picture.see()
    assert picture.size == seen.image.size == expected.shape[1::-1]
    assert np.abs(np.asarray(seen.image).astype(int) - expected).max() <= tolerance
    assert seen.decoding == ({} if orientation == 1 else {"orientation": str(orientation)})
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(load_image(str(path))))
    # Once: what was turned is not turned again where it is given as a PIL image.
    np.testing.assert_array_equal(np.asarray(open_picture(seen.image).decode()), np.asarray(seen.image))
    # A picture that the caller opened, as transformers' loader takes it too.
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(open_picture(opened).decode()), np.asarray(seen.image))


@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("orientation", [1, 5, 6, 8, 3])
def test_raw_rows(form: str, orientation: int) -> None:
    rows = drawn()
    picture = measure_picture(file_of(rows, form, orientation), "it", limits=RAW)
    seen = picture.see()
    assert picture.size == seen.image.size == (96, 64)
    assert np.abs(np.asarray(seen.image).astype(int) - rows).max() <= (0 if form in LOSSLESS else 8)
    assert seen.decoding == ({} if orientation == 1 else {"orientation": f"{orientation}, not applied"})
    assert open_picture(seen.image).decode().size == (96, 64)


def test_orientations_that_are_none() -> None:
    for value in (0, 9, 65_535):
        assert measure_picture(file_of(drawn(), "JPEG", value), "it").see().decoding == {}
    damaged = file_of(drawn(), "JPEG", 6).replace(b"II*\0", b"II+\1").replace(b"MM\0*", b"MM\1+")
    assert measure_picture(damaged, "it").size == (96, 64)
    assert measure_picture(damaged, "it").decode().size == (96, 64)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_png_file_may_tell_it_behind_its_pixels() -> None:
    plain, tagged = file_of(drawn(), "PNG", None), file_of(drawn(), "PNG", 6)
    start = tagged.index(b"eXIf") - 4
    length = int.from_bytes(tagged[start : start + 4], "big")
    late = plain[:-12] + tagged[start : start + length + 12] + plain[-12:]
    seen = measure_picture(late, "it").see()
    np.testing.assert_array_equal(np.asarray(seen.image), UPRIGHT[6](drawn()))
    np.testing.assert_array_equal(np.asarray(seen.image), np.asarray(load_image(Image.open(io.BytesIO(late)))))
    assert seen.decoding == {"orientation": "6"}


def test_xmp_tells_it_too() -> None:
    plain = file_of(drawn(), "PNG", None)
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="8"/>')
    place = plain.index(b"IDAT") - 4
    tagged = plain[:place] + xmp + plain[place:]
    np.testing.assert_array_equal(np.asarray(measure_picture(tagged, "it").decode()), UPRIGHT[8](drawn()))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_reduced_jpeg_file_is_turned(orientation: int) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(drawn(643, 479)).save(buffer, "JPEG", exif=exif, quality=20)
    data = buffer.getvalue()
    picture = measure_picture(data, "it", limits=MediaLimits(max_picture_pixels=100))
    assert picture.draft > 1
    reduced = Image.open(io.BytesIO(data))
    reduced.draft("RGB", (643 // picture.draft, 479 // picture.draft))
    seen = picture.see()
    assert picture.size == seen.image.size
    np.testing.assert_array_equal(np.asarray(seen.image), UPRIGHT[orientation](np.asarray(reduced)))
    assert seen.decoding["draft"] == f"1/{picture.draft}"


def test_sixteen_bit_grey_is_turned(tmp_path: Path) -> None:
    rows = (drawn()[..., :1].astype(np.uint16) * 257).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(rows[..., 0]).save(tmp_path / "deep", form, exif=exif)
        for limits, expected in ((MediaLimits(), UPRIGHT[6](drawn()[..., :1])), (RAW, drawn()[..., :1])):
            seen = measure_picture(tmp_path / "deep", "it", limits=limits).see()
            np.testing.assert_array_equal(np.asarray(seen.image)[..., :1], expected)
            assert seen.decoding["levels"] == "0..65535"


def prompts(edge: Edge, picture: Any) -> list[Prompt]:
    """Of both preprocessing paths."""
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    assert edge.lean is not None
    return [
        prepare_lean_prompt(messages, edge.lean, edge.policy),
        prepare_prompt(messages, edge.processor, edge.policy),
    ]


@pytest.mark.parametrize("orientation", [2, 6])
def test_both_paths_and_every_form_of_a_source(edge: Edge, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "tagged.png"
    path.write_bytes(file_of(drawn(), "PNG", orientation))
    expected = prompts(edge, Image.fromarray(UPRIGHT[orientation](drawn())))[0]
    for source in (path, str(path), f"file://{path}", data_uri(path), Image.open(path)):
        for found in prompts(edge, source):
            assert found.media[0].grid == expected.media[0].grid
            np.testing.assert_array_equal(found.media[0].input.pixel_values, expected.media[0].input.pixel_values)
            assert found.media[0].decoding["orientation"] == str(orientation)


def test_frames_given_as_pictures(tmp_path: Path) -> None:
    path = tmp_path / "tagged.png"
    path.write_bytes(file_of(drawn(), "PNG", 6))
    for limits, expected in ((MediaLimits(), UPRIGHT[6](drawn())), (RAW, drawn())):
        with open_clip([str(path), data_uri(path)], MediaBudget(limits)) as frames:
            assert isinstance(frames, list)
            for frame in frames:
                np.testing.assert_array_equal(np.asarray(frame), expected)


def test_pictures_of_parity_and_calibration(tmp_path: Path) -> None:
    (tmp_path / "tagged.png").write_bytes(file_of(drawn(), "PNG", 6))
    np.testing.assert_array_equal(np.asarray(pictures_of(tmp_path)["tagged.png"]), UPRIGHT[6](drawn()))


def test_the_library_says_what_it_did(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "tagged.png"
    path.write_bytes(file_of(drawn(), "PNG", 6))
    messages = [{"role": "user", "content": [{"type": "image", "image": str(path)}]}]
    for turns, said in ((True, "6"), (False, "6, not applied")):
        options = EdgeOptions(backend_options=BackendOptions(precision="fp32"), exif_orientation=turns)
        with open_edge(bundle, options) as opened:
            medium = opened.encode(messages).request.media[0]
        assert medium.origin["orientation"] == said
        assert (medium.grid.h > medium.grid.w) == (said == "6")


@needs_heif
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_raw_rows_of_heic_are_those_before_its_container_turns_them(orientation: int) -> None:
    """At device and server; libheif turns them as it decodes, and Pillow learns nothing of it."""
    rows = drawn()
    data = file_of(rows, "HEIF", orientation)
    assert container_orientation(data) == orientation
    uri = f"data:image/heic;base64,{base64.b64encode(data).decode()}"
    claimed: list[int] = []
    picture = measure_picture(data, "it", limits=RAW)
    assert picture.size == rows.shape[1::-1]
    for seen in (picture.see(), open_data_uri(uri, "it", claimed.append, exif_orientation=False)):
        assert np.abs(np.asarray(seen.image).astype(int) - rows).max() <= 8
        assert seen.decoding == ({} if orientation == 1 else {"orientation": f"{orientation}, not applied"})
    for seen in (measure_picture(data, "it").see(), open_data_uri(uri, "it", claimed.append)):
        assert np.abs(np.asarray(seen.image).astype(int) - UPRIGHT[orientation](rows)).max() <= 8
    assert claimed == [96 * 64] * 2


def boxed(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(b"".join(content))) + kind + b"".join(content)


@needs_heif
def test_an_orientation_in_the_exif_of_heic_counts_for_nothing() -> None:
    """23008-12, A.2.1: the container's turn alone is applied; phones write both."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(drawn()).save(buffer, "HEIF", exif=exif, **LOSSY["HEIF"])
    assert b"irot" not in buffer.getvalue()
    seen = measure_picture(buffer.getvalue(), "it").see()
    assert np.abs(np.asarray(seen.image).astype(int) - drawn()).max() <= 8
    assert seen.decoding == {}


# ISO/IEC 23008-12: quarters anticlockwise, then 0 for top and bottom exchanged, 1 for left and right.
CONTAINERS = {(0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6, (0, 1): 2, (0, 0): 4, (1, 0): 5, (1, 1): 7}


@pytest.mark.parametrize(("turn", "mirror"), CONTAINERS)
@pytest.mark.parametrize("wide", [0, 1])
def test_a_containers_turn_and_mirror_are_one_orientation(turn: int, mirror: int | None, wide: int) -> None:
    """The primary item's alone, in either size of numbers; a thumbnail has properties of its own."""
    properties = [boxed(b"irot", b"\2"), boxed(b"irot", bytes([turn]))]
    indices = [2]
    if mirror is not None:
        properties.append(boxed(b"imir", bytes([mirror])))
        indices.append(3)
    item, index = (">I", ">H") if wide else (">H", ">B")
    essential = 0x8000 if wide else 0x80
    entries = [(1, [1]), (7, indices)]
    associations = b"".join(
        struct.pack(item, number) + bytes([len(own)]) + b"".join(struct.pack(index, essential | one) for one in own)
        for number, own in entries
    )
    header = bytes([wide, 0, 0, wide])
    data = boxed(b"ftyp", b"heic", bytes(4)) + boxed(
        b"meta",
        bytes(4),
        boxed(b"pitm", bytes([wide, 0, 0, 0]), struct.pack(item, 7)),
        boxed(b"iprp", boxed(b"ipco", *properties), boxed(b"ipma", header, struct.pack(">I", 2), associations)),
    )
    assert container_orientation(data) == CONTAINERS[turn, mirror]
