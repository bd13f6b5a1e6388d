"""What a picture may cost: its pixels are known before it is decoded, and its file's structure is bounded."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.formats import bounded_file
from qwen3vl_edge.contract.formats.bounded_file import HEADER_READS, MAX_SCANS
from qwen3vl_edge.contract.formats.bounded_picture import FREE_PIXELS
from qwen3vl_edge.contract.formats.picture_files import FORMATS
from qwen3vl_edge.contract.formats.seen_picture import SeenPicture
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.lean.processor import prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.messages import Message
from qwen3vl_edge.edge_runtime.inputs.prompt import prepare_prompt
from qwen3vl_edge.edge_runtime.inputs.sources.limits import AbandonedError, MediaBudget, MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import measure_picture, open_picture
from qwen3vl_edge.server.openai.pixels import open_data_uri

LOW = MediaLimits(max_picture_pixels=10_000)
DAEMON = MediaLimits(64, 100_000_000, FREE_PIXELS, 1_600_000_000, 16_384)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def conversation(*pictures: Any) -> list[Message]:
    return [{"role": "user", "content": [{"type": "image", "image": picture} for picture in pictures]}]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF"])
def test_a_small_file_is_no_large_picture(form: str) -> None:
    data = saved(Image.new("RGB", (4000, 4000)), form)
    assert len(data) * 10 < 4000 * 4000
    with pytest.raises(LimitError, match=rf"at most {FREE_PIXELS} pixels in a file of {len(data)} bytes") as caught:
        measure_picture(data, "it", FORMATS, DAEMON)
    assert "max_picture_pixels" in str(caught.value)
    assert "got 4000x4000" in str(caught.value)


def test_a_large_file_may_be_a_large_picture() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), "JPEG", quality=50)
    assert FREE_PIXELS < 3000 * 3000
    assert measure_picture(data, "it", FORMATS, DAEMON).draft == 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_file_is_decoded_at_the_largest_scale_that_fits(mode: str) -> None:
    for width, height in ((641, 479), (320, 240), (120, 120), (100, 100)):
        data = saved(gradient(width, height).convert(mode), "JPEG", quality=20)
        most = max(10_000, 10 * len(data))
        fits = [scale for scale in (1, 2, 4, 8) if -(-width // scale) * -(-height // scale) <= most]
        picture = measure_picture(data, "it", FORMATS, LOW)
        assert picture.draft == fits[0]
        expected = Image.open(io.BytesIO(data))
        if fits[0] > 1:
            expected.draft(None, (width // fits[0], height // fits[0]))
        assert picture.size == expected.size
        np.testing.assert_array_equal(np.asarray(picture.decode()), np.asarray(expected.convert("RGB")))


def test_the_evidence_has_the_scale(edge: Edge) -> None:
    data = saved(gradient(640, 480), "JPEG", quality=20)
    reduced = measure_picture(data, "it", FORMATS, LOW)
    assert reduced.draft > 1
    for prepare, processor in ((prepare_lean_prompt, edge.lean), (prepare_prompt, edge.processor)):
        whole = measure_picture(data, "it", FORMATS)
        prompt = prepare(conversation(reduced, whole), processor, edge.policy)  # type: ignore[operator]
        assert [item.decoding.get("draft") for item in prompt.media] == [f"1/{reduced.draft}", None]
    prepared = edge.prepare(conversation(reduced, whole))
    origins = [item.origin for item in edge.embed(prepared).request.media]
    assert origins[0]["draft"] == f"1/{reduced.draft}"
    assert "draft" not in origins[1]


def test_a_progressive_jpeg_file_has_all_its_coefficients_in_memory_at_any_scale() -> None:
    data = saved(gradient(640, 480), "JPEG", quality=20, progressive=True)
    assert measure_picture(data, "it", FORMATS).draft == 1
    with pytest.raises(LimitError, match="baseline JPEG"):
        measure_picture(data, "it", FORMATS, LOW)


def test_scans_of_a_jpeg_file_are_counted(tmp_path: Path) -> None:
    """Each takes a pass over all of the picture, and a few bytes."""
    data = saved(gradient(64, 64), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    many = data[:-2] + scan * MAX_SCANS + data[-2:]
    # Split by a block's end, the marker still counts.
    padded = many.replace(scan, b"\xff" * (bounded_file._BLOCK - many.index(scan) % bounded_file._BLOCK - 1) + scan, 1)
    path = tmp_path / "many.jpg"
    path.write_bytes(padded)
    for content in (many, padded, path):
        with pytest.raises(LimitError, match=f"too many scans: expected at most {MAX_SCANS}"):
            measure_picture(content, "it")
    with pytest.raises(LimitError, match=f"picture it has too many scans: expected at most {MAX_SCANS}"):
        at_the_server(many, "jpeg")
    assert measure_picture(data, "it").decode().size == (64, 64)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(chunks: bytes, before_pixels: bool) -> bytes:
    data = saved(gradient(32, 32), "PNG")
    place = data.index(b"IDAT") - 4 if before_pixels else data.index(b"IEND") - 4
    return data[:place] + chunks + data[place:]


def gif_with_comment(blocks: int) -> bytes:
    data = saved(gradient(32, 32), "GIF")
    place = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1))  # the image descriptor
    return data[:place] + b"\x21\xfe" + b"\xff".join([b"", *[b"c" * 255] * blocks]) + b"\x00" + data[place:]


def jpeg_with_segments(count: int) -> bytes:
    data = saved(gradient(32, 32), "JPEG")
    return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]


MANY = HEADER_READS
STRUCTURES = {
    "chunks before the pixels": lambda many: png_with(chunk(b"prVt", b"") * many, True),
    "chunks after them": lambda many: png_with(chunk(b"prVt", b"") * 2 * many, False),
    "comments": gif_with_comment,
    "segments": jpeg_with_segments,
}


def at_the_server(content: bytes, kind: str) -> SeenPicture:
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return open_data_uri(uri, "it", lambda pixels: None)


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=STRUCTURES)
def test_metadata_in_many_pieces_is_refused_at_device_and_server(make: Any) -> None:
    for decode in (lambda content: measure_picture(content, "it").see(), lambda content: at_the_server(content, "png")):
        with pytest.raises(LimitError, match="picture it has too many pieces of metadata"):
            decode(make(MANY))
        assert decode(make(100)).image.size == (32, 32)


def test_device_and_server_refuse_in_the_same_words() -> None:
    whole = saved(gradient(90, 70), "PNG")
    huge = whole[:16] + struct.pack(">II", 20_000, 20_000) + whole[24:29]
    huge += struct.pack(">I", zlib.crc32(huge[12:29])) + whole[33:]  # more than Pillow opens
    large = saved(Image.new("1", (4000, 4000)), "PNG")
    at_the_device = partial(measure_picture, label="it", formats=FORMATS, limits=DAEMON)
    for content in (whole[:60], huge, large, b"no picture at all"):
        found = []
        for decode in (lambda data: at_the_device(data).see(), partial(at_the_server, kind="png")):
            with pytest.raises((InputError, LimitError)) as caught:
                decode(content)
            found.append(re.split(r"\((?:max_|8388608, or 10 )", str(caught.value))[0])  # each names its own limit
        assert found[0].split(" expected PNG")[0] == found[1].split(" expected PNG")[0]


def test_text_of_a_png_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import PngImagePlugin

    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", PngImagePlugin.MAX_TEXT_MEMORY)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))
    data = png_with(text * 8, True)
    assert len(data) < 20_000
    measure_picture(data, "it")
    bounded_file.bound_png_text()
    with pytest.raises(InputError, match="corrupt"):
        measure_picture(data, "it")
    assert measure_picture(png_with(text * 2, True), "it")


def test_no_program_is_run(tmp_path: Path) -> None:
    """Pillow gives PostScript to Ghostscript."""
    path = tmp_path / "program.png"
    path.write_bytes(saved(gradient(32, 32), "EPS"))
    with pytest.raises(InputError, match="is not a picture: expected PNG, JPEG"):
        open_picture(path)


@pytest.mark.parametrize("form", ["TIFF", "ICO", "PPM", "EPS"])
def test_clients_send_common_formats(form: str) -> None:
    with pytest.raises(InputError, match=r"is not a picture: expected PNG, JPEG, WEBP, GIF, BMP\. Convert it to PNG"):
        measure_picture(saved(gradient(32, 32), form), "it", FORMATS)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_many_frames_the_first_is_decoded(form: str) -> None:
    frames = [Image.new("RGB", (20, 30), (shade, 0, 0)) for shade in (10, 200, 250)]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:])
    image = measure_picture(data, "it").decode().convert("RGB")
    assert image.size == (20, 30)
    assert abs(np.asarray(image)[0, 0, 0] - 10.0) < 4


def test_a_cut_file_is_corrupt() -> None:
    for form in FORMATS:
        data = saved(Image.effect_noise((90, 90), 80).convert("RGB"), form)
        with pytest.raises(InputError):
            measure_picture(data[: len(data) // 2], "it", FORMATS).decode()


def both(edge: Edge) -> tuple[tuple[Any, Any], ...]:
    return (prepare_lean_prompt, edge.lean), (prepare_prompt, edge.processor)


def test_pixels_are_added_up_before_the_first_is_decoded(edge: Edge) -> None:
    """The first is corrupt, which would be found if it were decoded."""
    whole = saved(Image.effect_noise((100, 100), 80).convert("RGB"), "PNG")
    pictures = [measure_picture(data, "it") for data in (whole[: len(whole) // 2], whole, whole)]
    for prepare, processor in both(edge):
        budget = MediaBudget(MediaLimits(max_pixels=29_999))
        with pytest.raises(LimitError, match=r"at most 29999 \(max_pixels\), got 30000"):
            prepare(conversation(*pictures), processor, edge.policy, budget)
        with pytest.raises(InputError, match="corrupt"):
            prepare(conversation(*pictures), processor, edge.policy, MediaBudget(MediaLimits(max_pixels=30_000)))


def test_media_and_visual_tokens_are_limited(edge: Edge) -> None:
    pictures = [gradient(128, 128)] * 3  # 16 visual tokens each
    for prepare, processor in both(edge):
        with pytest.raises(LimitError, match=r"pictures and clips: expected at most 2 \(max_media\), got 3"):
            prepare(conversation(*pictures), processor, edge.policy, MediaBudget(MediaLimits(max_media=2)))
        with pytest.raises(LimitError, match=r"visual tokens: expected at most 47 \(max_visual_tokens\), got 48"):
            prepare(conversation(*pictures), processor, edge.policy, MediaBudget(MediaLimits(max_visual_tokens=47)))
        claimed: list[int] = []
        prepare(conversation(*pictures), processor, edge.policy, MediaBudget(claim_tokens=claimed.append))
        assert claimed == [16, 16, 16]


def test_it_ends_between_pictures(edge: Edge) -> None:
    for prepare, processor in both(edge):
        budget = MediaBudget(claim_tokens=lambda _: budget.abandon())  # noqa: B023
        with pytest.raises(AbandonedError):
            prepare(conversation(gradient(128, 128), gradient(128, 128)), processor, edge.policy, budget)
    late = MediaBudget(seconds=-1.0, setting="stall_s")
    with pytest.raises(LimitError, match=r"too long to prepare: expected at most -1 s \(stall_s\)"):
        edge.prepare(conversation(gradient(128, 128)), late)
