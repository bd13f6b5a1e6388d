"""Cameras over real sources and a real engine: a stream that breaks off and returns, a busy engine, a failing one."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.cameras.camera import Camera
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.cameras.frame_patches import native_grid, patchify, resize_frame
from qwen3vl_edge.edge_runtime.cameras.window import Window
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.parity.end_to_end import compare_prompt, open_both
from tests.support.http_api.client import generate
from tests.support.video_files import lossless_clip
from tests.support.waiting import until


def transport_stream(seconds: float, fps: int = 20) -> bytes:
    """MPEG-TS, as an encoder sends it."""
    made = io.BytesIO()
    with av.open(made, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 96, "yuv420p", 5
        for index in range(int(seconds * fps)):
            picture = np.full((96, 128, 3), index % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return made.getvalue()


class Stream(ThreadingHTTPServer):
    """Sends a stream at the pace of its frames; the first connections break off in mid-stream, or are refused."""

    daemon_threads = True

    def __init__(self, refused: set[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Sender)
        self.refused, self.connections = refused, 0
        self.body = transport_stream(2)


class _Sender(BaseHTTPRequestHandler):
    server: Stream

    def do_GET(self) -> None:
        self.server.connections += 1
        number = self.server.connections
        if number in self.server.refused:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        body = self.server.body if number > 1 else self.server.body[: len(self.server.body) * 3 // 5]
        pieces = 20
        for index in range(pieces):
            step = -(-len(body) // pieces)
            try:
                self.wfile.write(body[index * step : (index + 1) * step])
            except OSError:
                return
            time.sleep(0.1)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stream() -> Iterator[Stream]:
    with Stream(refused={2}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def engine_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_stream_that_breaks_off_is_taken_up_again(
    edge: Edge, stream: Stream, engine_thread: ThreadPoolExecutor
) -> None:
    url = f"http://127.0.0.1:{stream.server_address[1]}/live.ts?key=secret"
    camera = Camera(CameraConfig("front", url, fps=10, seconds=30), edge, engine_thread.submit)
    camera.start()
    try:
        until(lambda: camera.connected and len(camera.window) > 0, camera.state)
        before = camera.clip().patches[-1]
        until(lambda: not camera.connected, camera.state)
        lost = camera.state()
        assert lost["error"]
        assert "secret" not in str(lost)
        assert lost["fps_seen"] == 0
        until(lambda: camera.connected and camera.reconnects >= 2, camera.state)
        again = camera.state()
        assert again["error"] == ""
        assert again["reconnects"] >= 2
        assert stream.connections >= 3
        sampled = camera.sampled
        until(lambda: camera.sampled >= sampled + 4, camera.state)
        patches = camera.clip().patches
        assert before in patches  # the window goes on
        times = [seconds for patch in patches for seconds in patch.times]
        assert times == sorted(times)
        assert times[-1] > before.times[1]
        assert len(patches) <= camera.window.capacity
    finally:
        camera.close()
    assert not camera._thread.is_alive()


class Counted:
    """Puts work on the engine's thread and counts what waits or runs there."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self._lock = pool, threading.Lock()
        self.now = self.most = 0

    def __call__(self, work: Callable[[], None]) -> Future[None]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

        def run() -> None:
            with self._lock:
                self.now -= 1
            work()

        return self._pool.submit(run)


def test_always_gives_way_to_a_busy_engine(edge: Edge, tmp_path: Path, engine_thread: ThreadPoolExecutor) -> None:
    """What the engine has no time for is counted; at most one encode waits; what is asked meanwhile is answered."""
    lossless_clip(tmp_path / "clip.mp4", 20, fps=20)
    submit = Counted(engine_thread)
    config = CameraConfig("front", str(tmp_path / "clip.mp4"), fps=20, seconds=0.4, encode="always")
    camera = Camera(config, edge, submit)
    release = threading.Event()
    engine_thread.submit(release.wait)
    camera.start()
    try:
        until(lambda: camera.state()["patches_unencoded"] >= 3, camera.state)
        assert submit.now == submit.most == 1
        assert len(camera.window) <= camera.window.capacity
        release.set()
        for _ in range(5):
            clip = camera.clip()
            made = engine_thread.submit(clip.embeddings, edge.encode_items).result(60)
            assert len(made.embeds) == clip.choice.grid.patches // 4
        until(lambda: camera.state()["patches_encoded"] >= 5, camera.state)
        assert submit.most == 1
    finally:
        release.set()
        camera.close()


def test_an_encode_that_fails_stays_visible_until_one_succeeds(
    edge: Edge, tmp_path: Path, engine_thread: ThreadPoolExecutor
) -> None:
    lossless_clip(tmp_path / "clip.mp4", 20, fps=20)
    config = CameraConfig("front", str(tmp_path / "clip.mp4"), fps=20, seconds=0.4, encode="always")
    camera = Camera(config, edge, engine_thread.submit)
    good = camera.window._patchify

    def broken(pair: NDArray[np.uint8]) -> EncoderInput:  # refused by the engine: too few values for the grid
        item = good(pair)
        return replace(item, pixel_values=item.pixel_values[:-4])

    camera.window._patchify = broken
    camera.start()
    try:
        until(lambda: bool(camera.state()["encode_error"]), camera.state)
        sampled = camera.sampled
        until(lambda: camera.sampled > sampled + 4, camera.state)
        state = camera.state()
        assert state["connected"]
        assert state["error"] == ""
        assert state["encode_error"]
        assert state["patches_encoded"] == 0
        camera.window._patchify = good
        until(lambda: camera.state()["patches_encoded"] > 0, camera.state)
        assert camera.state()["encode_error"] == ""
    finally:
        camera.close()


def test_a_window_gets_the_answer_of_the_clip_and_of_the_unsplit_model(
    edge: Edge, server_url: str, samples: Path, reference: Path
) -> None:
    """Greedy tokens in fp32: the window and the clip encoded at once from the real server, the model not split."""
    path, sampling = samples / "motion.mp4", Sampling(max_new_tokens=16)
    question = {"type": "text", "text": "Which way does the cross move?"}
    messages = [{"role": "user", "content": [{"type": "video", "video": str(path)}, question]}]
    whole = edge.encode(messages, sampling)
    choice = whole.media[0].choice
    assert choice.exact
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate or 0)
    assert len(pictures) == 2 * choice.grid.t  # qwen-vl-utils takes all of them
    native = native_grid(*pictures[0].shape[:2], len(pictures), edge.policy.geometry, edge.policy.pixels)
    one = edge.policy.choose(native)
    window = Window("front", len(pictures) / rate, rate, lambda pair: patchify(pair, edge.processor.hf))
    for index, picture in enumerate(pictures):
        if window.add(
            50 + index / rate, resize_frame(picture, *edge.policy.geometry.pixels(one.grid), edge.policy.pixels)
        ):
            snapshot = window.snapshot(50 + index / rate, one)
            assert snapshot is not None
            snapshot.embeddings(edge.encode_items)
    assert snapshot is not None
    assert snapshot.encoded == choice.grid.t
    live = edge.encode([{"role": "user", "content": [{"type": "video", "video": snapshot}, question]}], sampling)
    np.testing.assert_array_equal(live.request.input_ids, whole.request.input_ids)
    ours, theirs = (generate(server_url, encode_request(asked.request)) for asked in (live, whole))
    assert ours["text"]
    assert ours["generated_ids"] == theirs["generated_ids"]
    split, unsplit = open_both(edge, reference)
    result = compare_prompt("clip", messages, split, unsplit, sampling.max_new_tokens)
    assert tuple(ours["generated_ids"]) == result.unsplit_ids
