"""Daemon, and server with pixels: the same files are taken, seen alike, and refused with a reason and never a 500."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, features
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as transformers_resize

from qwen3vl_edge.contract.formats.picture_files import client_formats
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.chat import data_uri, image, post_chat, text_of, user
from tests.support.openai_parts import REFERENCE, SAMPLES
from tests.support.video_files import lossless_clip

TINY = "qwen3vl-tiny"
DOORS = ("daemon", "server")


@dataclass(frozen=True)
class Doors:
    daemon: str
    server: str

    def ask(self, door: str, source: bytes | str) -> httpx.Response:
        """One question about one picture, as file content or URL."""
        body = {"model": TINY, "messages": [user(image(source), "What number is it?")], "max_tokens": 12}
        return post_chat(getattr(self, door), body)


@pytest.fixture(scope="module")
def doors(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("doors")
    settings = 'precision = "fp32"\nallow_private_urls = true\n'
    with (
        running_server(threads=1, model=str(REFERENCE), dtype="float32", allow_pixels=True) as server,
        running_daemon(folder, bundle, server.url, settings) as daemon,
    ):
        yield Doors(daemon.url, server.url)


def saved(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def shown(answer: httpx.Response) -> tuple[str, Any, Any]:
    """The answer's text, the tokens of its prompt, and the picture's grid."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return text_of(body), body["usage"]["prompt_tokens"], body["qwen3vl_edge"]["media"][0]["grid"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_picture_of_the_phone_on_its_side_is_seen_upright(doors: Doors, door: str, form: str) -> None:
    upright = Image.open(SAMPLES / "number-wide.png").convert("RGB")
    assert upright.width != upright.height
    exif = Image.Exif()
    exif[0x0112] = 6  # stored so that it has to be turned clockwise
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    turned = doors.ask(door, saved(lying, form, exif=exif, **options))
    assert shown(turned) == shown(doors.ask(door, saved(upright)))
    assert shown(turned)[2] != shown(doors.ask(door, saved(lying)))[2]
    assert turned.json()["qwen3vl_edge"]["media"][0]["orientation"] == "6"


@pytest.mark.parametrize("door", DOORS)
def test_deep_grey_and_transparency_are_seen(doors: Doors, door: str) -> None:
    plain = Image.open(SAMPLES / "number-wide.png").convert("L")
    grey = shown(doors.ask(door, saved(plain)))
    deep = Image.fromarray(np.asarray(plain).astype(np.uint16) * 257)
    seen_deep = doors.ask(door, saved(deep))
    assert shown(seen_deep) == grey
    assert seen_deep.json()["qwen3vl_edge"]["media"][0]["levels"] == "0..65535"
    animated = doors.ask(door, saved(plain, "GIF", save_all=True, append_images=[deep.convert("L")]))
    assert animated.json()["qwen3vl_edge"]["media"][0]["frame"] == "first of 2"
    indexed = Image.open(SAMPLES / "number-wide.png").convert("RGB").quantize(16)
    hidden = bytes(index % 2 * 255 for index in range(16))
    values = np.asarray(indexed)
    seen = np.where((values % 2 == 0)[..., None], 255, np.asarray(indexed.convert("RGB"))).astype(np.uint8)
    with_alpha = saved(indexed, transparency=hidden)
    assert shown(doors.ask(door, with_alpha)) == shown(doors.ask(door, saved(Image.fromarray(seen))))


@pytest.mark.parametrize("door", DOORS)
def test_every_format_is_taken_at_both_doors(doors: Doors, door: str) -> None:
    picture = Image.open(SAMPLES / "number-wide.png").convert("RGB")
    for form in client_formats():
        assert doors.ask(door, saved(picture, form)).status_code == 200, form
    for form in ("TIFF", "ICO", "PPM"):
        answer = doors.ask(door, saved(picture, form))
        assert answer.status_code == 400
        assert "not a picture" in answer.json()["error"]["message"]


@pytest.mark.parametrize("door", DOORS)
def test_limits_of_a_request_are_in_force_at_both_doors(doors: Doors, door: str) -> None:
    """Sizes are transformers': 300x200 within 65,536 and 100,000 pixels, and within 20,000."""
    source = data_uri(saved(Image.effect_noise((300, 200), 60).convert("RGB")))

    def asked(options: dict[str, Any], **more: Any) -> dict[str, Any]:
        part = {"type": "image_url", "image_url": {"url": source, **options}}
        body = {"model": TINY, "messages": [user(part, "What?")], "max_tokens": 1, **more}
        answer = post_chat(getattr(doors, door), body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["qwen3vl_edge"]["media"][0]
        return found

    def told(limits: dict[str, Any]) -> tuple[str, str, str]:
        return str(limits.get("native", limits["grid"])), limits["pixel_policy"], limits["pixel_limits"]

    def expected(least: int, most: int) -> tuple[str, str, str]:
        rows, columns = transformers_resize(200, 300, 32, least, most)
        return f"1x{rows // 16}x{columns // 16}", "checkpoint", f"{least} to {most}"

    assert told(asked({})) == expected(4096, 262_144)
    size = {"shortest_edge": 65_536, "longest_edge": 100_000}
    for arguments in ({"size": size}, {"min_pixels": 65_536, "max_pixels": 100_000}, {"images_kwargs": {"size": size}}):
        assert told(asked({}, mm_processor_kwargs=arguments)) == expected(65_536, 100_000)
    assert told(asked({"max_pixels": 20_000})) == expected(4096, 20_000)
    assert told(asked({"min_pixels": 90_000}, mm_processor_kwargs={"max_pixels": 100_000})) == expected(90_000, 100_000)
    sides = asked({"resized_height": 64, "resized_width": 96})
    assert told(sides) == ("1x4x6", "checkpoint", "resized_height 64, resized_width 96")


def test_limits_of_a_request_are_in_force_for_its_clips(doors: Doors, tmp_path: Path) -> None:
    """Sizes are the video processor's own; the server with pixels encodes no clips and says where one was."""
    frames = np.stack(lossless_clip(tmp_path / "clip.mp4", 8, fps=2))
    source = data_uri(tmp_path / "clip.mp4")
    processor = AutoProcessor.from_pretrained(REFERENCE).video_processor

    def asked(door: str, **more: Any) -> httpx.Response:
        part = {"type": "video_url", "video_url": {"url": source}}
        body = {"model": TINY, "messages": [user(part, "What?")], "max_tokens": 1, **more}
        return post_chat(getattr(doors, door), body)

    def expected(**limits: Any) -> str:
        videos = processor(videos=[frames], do_sample_frames=False, return_tensors="pt", **limits)
        return "x".join(map(str, videos["video_grid_thw"][0].tolist()))

    size = {"shortest_edge": 4096, "longest_edge": 60_000}
    assert expected(size=size) != expected()
    for arguments, wanted in (
        ({"size": size}, expected(size=size)),
        ({"videos_kwargs": {"min_pixels": 4096, "max_pixels": 60_000}}, expected(size=size)),
        ({"images_kwargs": {"size": size}}, expected()),
    ):
        answer = asked("daemon", mm_processor_kwargs=arguments)
        assert answer.status_code == 200, answer.text
        told = answer.json()["qwen3vl_edge"]["media"][0]
        assert told.get("native", told["grid"]) == wanted, arguments
    wrong = asked("daemon", mm_processor_kwargs={"videos_kwargs": {"size": {"height": 9}}})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "mm_processor_kwargs.videos_kwargs.size")
    refused(asked("server", mm_processor_kwargs={"size": size}), "")
    alone = asked("server")
    refused(alone, "clips are encoded on the device")
    assert alone.json()["error"]["param"] == "messages.0.content.0"


def refused(answer: httpx.Response, words: str) -> None:
    assert answer.status_code in (400, 413), answer.text
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"]


@pytest.mark.parametrize("door", DOORS)
def test_what_cannot_be_seen_is_a_refusal_with_its_reason(doors: Doors, door: str) -> None:
    refused(doors.ask(door, saved(Image.new("RGB", (2001, 10)))), "aspect ratio")
    refused(doors.ask(door, saved(Image.new("RGB", (10, 2001)))), "aspect ratio")
    noise = Image.effect_noise((120, 90), 80).convert("RGB")
    for form in client_formats():
        data = saved(noise, form)
        refused(doors.ask(door, data[: len(data) // 2]), "not a picture" if form == "AVIF" else "corrupt")
    if features.check("avif"):
        damaged = bytearray(saved(noise, "AVIF"))
        place = damaged.index(b"mdat") + 4 + 16  # behind the sequence header
        damaged[place : place + 8] = b"\xff" * 8
        refused(doors.ask(door, bytes(damaged)), "corrupt (RuntimeError: Failed to decode")


class Odd(BaseHTTPRequestHandler):
    """Answers with the status, and the Location, that the path names."""

    def do_GET(self) -> None:
        _, status, *location = self.path.split("/", 2)
        self.send_response(int(status))
        for value in location:
            self.send_header("Location", value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def odd_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ODD_PATHS = ("304", "302", "301/", "300", "307", "302/http://[", "302/http://a b/", "302//\udcff", "199", "204", "600")


@pytest.mark.parametrize("path", ODD_PATHS)
def test_an_answer_that_is_no_picture_is_a_refusal(doors: Doors, odd_server: str, path: str) -> None:
    answer = doors.ask("daemon", f"{odd_server}/{path}".encode("ascii", "replace").decode())
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
