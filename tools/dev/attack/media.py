"""Pictures, clips, URLs and texts for the daemon that become large, or slow, once they are decoded or fetched."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from qwen3vl_edge.tools.dev.attack.attack import Attack, Outcome, Shot, volley
from qwen3vl_edge.tools.dev.attack.target import MIB, Target

ENCODE = "/v1/encode"
FETCHES = {"allow_private_urls": True, "fetch_timeout_s": 3.0}


def _chat(*parts: dict[str, Any]) -> Shot:
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return Shot(ENCODE, json.dumps({"messages": [{"role": "user", "content": content}]}).encode())


def _part(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _data(content: bytes, kind: str = "image/png") -> dict[str, Any]:
    return _part(kind.split("/")[0], f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


MOST_PICTURES = 12


def pictures_in_4k(count: int) -> Callable[[Target], Shot]:
    """So many 4K pictures, with transparency, in a request."""

    def shot(_: Target) -> Shot:
        image = Image.linear_gradient("L").resize((3840, 2160)).convert("RGBA")
        return _chat(*[_data(_saved(image, "PNG"))] * count)

    return shot


def too_many_pixels(_: Target) -> Shot:
    """Eight times 144 million pixels, in 17 kB each."""
    return _chat(*[_data(_saved(Image.new("1", (12_000, 12_000)), "PNG"))] * 8)


def scans(_: Target) -> Shot:
    """A megabyte of a JPEG file's scans: each is a pass over all of the picture, and takes 60 bytes."""
    data = _saved(Image.new("RGB", (2048, 2048)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return _chat(_data(data[:-2] + scan * (700_000 // len(scan)) + data[-2:], "image/jpeg"))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_with(chunks: bytes) -> dict[str, Any]:
    data = _saved(Image.new("RGB", (32, 32)), "PNG")
    place = data.index(b"IDAT") - 4
    return _data(data[:place] + chunks + data[place:])


def compressed_text(_: Target) -> Shot:
    """PNG files with 60 MiB of compressed text each."""
    text = _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(MIB), 9))
    return _chat(*[_png_with(text * 60)] * 8)


def pieces(_: Target) -> Shot:
    """A PNG file of 60,000 empty chunks, each some calls of Python."""
    return _chat(_png_with(_chunk(b"prVt", b"") * 60_000))


def _clip(codec: str, width: int, height: int, frames: int) -> bytes:
    """An MP4 file of empty frames, two a second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=2)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        empty = np.zeros((height * 3 // 2, width), np.uint8)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(empty, format="yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()


def large_frames(_: Target) -> Shot:
    """Frames of 8192 x 4320 in a few kilobytes: a minute of them took 13.6 GiB. A larger file is refused alike."""
    return _chat(_data(_clip("libx264", 8192, 4320, 4), "video/mp4"))


def claimed_frames(_: Target) -> Shot:
    """An MP4 file of eleven kilobytes that claims 60 million frames, whose index took 3.4 GB."""
    data = bytearray(_clip("mpeg4", 96, 96, 8))
    at = data.index(b"stsz") + 8
    data[at : at + 8] = struct.pack(">II", 1, 60_000_000)  # all of one size
    return _chat(_data(bytes(data), "video/mp4"))


def nested(_: Target) -> Shot:
    """Half a megabyte of opening brackets."""
    return Shot(ENCODE, b'{"messages":' + b"[" * 500_000)


def text(characters: int) -> Callable[[Target], Shot]:
    """So many characters of text."""
    words = "all work and no play " * (characters // 21)
    body = json.dumps({"messages": [{"role": "user", "content": words}]}).encode()
    return lambda _: Shot(ENCODE, body)


def largest_body(_: Target) -> Shot:
    """A body as large as one may be, a picture that is none."""
    return _chat(_data(bytes(23 * MIB)))


@contextmanager
def _web(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A web server that answers each request so; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the daemon has given up
                answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/picture.png"
    finally:
        server.shutdown()
        server.server_close()


def _drip(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(MIB))
    request.end_headers()
    while True:
        request.wfile.write(b"x")
        threading.Event().wait(0.2)


def _gzip_twice(request: BaseHTTPRequestHandler) -> None:
    content = gzip.compress(gzip.compress(bytes(512 * MIB)))
    request.send_response(200)
    request.send_header("Content-Encoding", "gzip, gzip")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def from_web(answer: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[Target, int, int], Outcome]:
    """Requests with the URL of a picture that is answered so."""

    def send(target: Target, times: int, at_once: int) -> Outcome:
        with _web(answer) as url:
            return volley(lambda _: _chat(_part("image", url)))(target, times, at_once)

    return send


def many_drips(target: Target, times: int, at_once: int) -> Outcome:
    """Three times as many at once as said: more than may be in flight."""
    return from_web(_drip)(target, 3 * times, 3 * at_once)


ATTACKS = (
    Attack("most-pictures", "daemon", volley(pictures_in_4k(MOST_PICTURES)), admitted=True),
    Attack("too-many-pixels", "daemon", volley(too_many_pixels)),
    Attack("jpeg-scans", "daemon", volley(scans)),
    Attack("png-text", "daemon", volley(compressed_text)),
    Attack("png-pieces", "daemon", volley(pieces)),
    Attack("large-frames", "daemon", volley(large_frames)),
    Attack("claimed-frames", "daemon", volley(claimed_frames)),
    Attack("nested-lists", "daemon", volley(nested)),
    Attack("daemon-text", "daemon", volley(text(20 * MIB))),
    Attack("daemon-longest-text", "daemon", volley(text(261_000)), admitted=True),
    Attack("largest-body", "daemon", volley(largest_body)),
    Attack("slow-urls", "daemon", many_drips, FETCHES),
    Attack("encoded-url", "daemon", from_web(_gzip_twice), FETCHES),
)
