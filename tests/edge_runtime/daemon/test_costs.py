"""What a request to the daemon may cost, and that one that costs much holds up no other."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from qwen3vl_edge.contract.http.listener import http_server, listen
from qwen3vl_edge.edge_runtime.daemon.app import create_app
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.open_pipeline import open_pipeline
from qwen3vl_edge.edge_runtime.daemon.reload import Reloader
from qwen3vl_edge.edge_runtime.daemon.systemd import feed_watchdog
from qwen3vl_edge.edge_runtime.daemon.upstreams.qwen3vl_server import Qwen3VLServer
from qwen3vl_edge.edge_runtime.daemon.worker_thread import WorkerThread
from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from tests.support.http_api.chat import data_uri, image, post_chat, user
from tests.support.http_api.metrics import metric_sum
from tests.support.waiting import until

HELD = "qwen3vl_edge_device_held_in_flight"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, bundle: Path, server_url: str) -> Iterator[DaemonProcess]:
    settings = (
        'precision = "fp32"\nallow_private_urls = true\nfetch_timeout_s = 60\nmax_text_kib = 1\nmax_media = 4\n'
        "max_pixels = 200000\nmax_picture_pixels = 60000\nmax_json_values = 200\n"
    )
    with running_daemon(tmp_path_factory.mktemp("costs"), bundle, server_url, settings) as running:
        yield running


def png(width: int, height: int, shade: int = 0) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 0, 0)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def encode(url: str, *parts: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/encode", json={"messages": [user(*parts)], **options}, timeout=60)


def refused(answer: httpx.Response) -> str:
    message: str = answer.json()["error"]["message"]
    return f"{answer.status_code} {message}"


def test_each_refusal_names_the_setting(daemon: DaemonProcess) -> None:
    many = [image(png(10, 10, shade)) for shade in range(5)]
    assert "413 the request has too much text: expected at most 1024 bytes (max_text_kib), got 1026" in refused(
        encode(daemon.url, "ä" * 513)
    )
    assert "at most 4 (max_media), got 5" in refused(encode(daemon.url, *many))
    assert "at most 200 (max_json_values), got" in refused(encode(daemon.url, "?", stop=["x"] * 200))
    assert "413 picture" in refused(encode(daemon.url, image(png(300, 300))))
    assert "(max_picture_pixels, or 10 a byte), got 300x300" in refused(encode(daemon.url, image(png(300, 300))))
    assert "413 the request has too many pixels: expected at most 200000 (max_pixels), got 200704" in refused(
        encode(daemon.url, *[image(png(224, 224, shade)) for shade in range(4)])
    )
    assert "400 URL is too long" in refused(encode(daemon.url, image("http://127.0.0.1/" + "x" * 9000)))
    assert "400 stop strings are too many" in refused(encode(daemon.url, "?", stop=["x"] * 17))
    assert encode(daemon.url, image(png(96, 96)), "?").status_code == 200


def test_nothing_is_held_afterwards(daemon: DaemonProcess) -> None:
    encode(daemon.url, image(png(96, 96)), "?")
    encode(daemon.url, image(png(300, 300)), "?")
    assert metric_sum(daemon.url, HELD) == 0
    text = httpx.get(f"{daemon.url}/metrics").text
    for resource in ("body_bytes", "json_values", "pixels", "visual_tokens"):
        assert f'{HELD}{{resource="{resource}"}}' in text


def test_labels_are_those_of_the_bundle(daemon: DaemonProcess) -> None:
    """Clients choose the sizes of pictures, and a label is kept for good."""
    for width in range(300, 500, 40):
        assert encode(daemon.url, image(png(width, 32)), "?").status_code == 200
    grids = {
        line.split('grid="')[1].split('"')[0]
        for line in httpx.get(f"{daemon.url}/metrics").text.splitlines()
        if line.startswith("qwen3vl_edge_device_media_total{")
    }
    buckets = set(httpx.get(f"{daemon.url}/readyz").json()["buckets"])
    assert "dynamic" in grids
    assert grids <= buckets | {"dynamic", "split"}


@contextmanager
def dripping_web() -> Iterator[tuple[str, set[int]]]:
    """The URL of a picture that comes a byte at a time, and the connections that it is sent on."""
    connections: set[int] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            connections.add(id(self))
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    threading.Event().wait(0.02)
            except OSError:
                connections.discard(id(self))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/a.png", connections
    finally:
        server.shutdown()
        server.server_close()


def test_a_slow_web_server_holds_up_its_own_request_alone(daemon: DaemonProcess, samples: Path) -> None:
    with dripping_web() as (url, connections), ThreadPoolExecutor(1) as other:
        with httpx.Client() as client:
            request = client.build_request("POST", f"{daemon.url}/v1/encode", json={"messages": [user(image(url))]})

            def left() -> None:
                with pytest.raises(httpx.ReadTimeout):
                    client.send(request)

            client.timeout = httpx.Timeout(30, read=3)
            request.extensions["timeout"] = client.timeout.as_dict()
            leaving = other.submit(left)
            until(lambda: connections)
            chat = {"messages": [user(image(data_uri(samples / "colour.png")), "What colour?")], "max_tokens": 2}
            assert post_chat(daemon.url, chat).status_code == 200
            assert connections  # it is answered while the other is still being fetched
            leaving.result()
        until(lambda: not connections)  # the client left, and so the fetch ended
    until(lambda: metric_sum(daemon.url, HELD) == 0)
    rows = httpx.get(f"{daemon.url}/v1/requests/recent").json()["data"]
    assert any((row["endpoint"], row["status"], row["error"]) == ("encode", 499, "client_left") for row in rows)


class Blocking:
    """The encoder, which waits for an event before each run."""

    def __init__(self, encoder: Any, released: threading.Event) -> None:
        self._encoder, self._released = encoder, released

    def run(self, *arguments: Any) -> Any:
        self._released.wait()
        return self._encoder.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


@contextmanager
def served(config: DaemonConfig) -> Iterator[tuple[str, Daemon]]:
    """A daemon within this process."""
    daemon = Daemon(config, Qwen3VLServer(config.server))
    daemon.started = open_pipeline(config)
    server = http_server(create_app(daemon, Reloader(daemon, lambda: config)), 1, loop="asyncio")
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield url, daemon
        finally:
            server.should_exit = True
            thread.join()
            daemon.started.close()


def ready(url: str) -> tuple[int, str]:
    answer = httpx.get(f"{url}/readyz", timeout=30)
    return answer.status_code, str(answer.json())


def test_a_stuck_encoder_is_not_ready(bundle: Path) -> None:
    config = DaemonConfig(bundle, server="http://127.0.0.1:9", precision="fp32", stall_s=0.2)
    released = threading.Event()
    with served(config) as (url, daemon), ThreadPoolExecutor(1) as client:
        pipeline = daemon.pipeline
        pipeline.edge.encoder = Blocking(pipeline.edge.encoder, released)
        asking = client.submit(encode, url, image(png(96, 96)), "?")
        try:
            until(lambda: ready(url)[0] == 503)
            assert "the encode thread is stuck: expected a step within 0.2 s (stall_s)" in ready(url)[1]
            assert httpx.get(f"{url}/healthz").status_code == 200
            until(lambda: daemon.beyond_help)
        finally:
            released.set()
        assert asking.result().status_code == 200
        until(lambda: ready(url)[0] == 200)
        assert not daemon.beyond_help


def test_the_claims_of_a_request_are_held_as_long_as_a_thread_works_on_it(bundle: Path) -> None:
    config = DaemonConfig(bundle, server="http://127.0.0.1:9", precision="fp32")
    released = threading.Event()
    with served(config) as (url, daemon):
        pipeline = daemon.pipeline
        pipeline.edge.encoder = Blocking(pipeline.edge.encoder, released)
        try:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/encode", json={"messages": [user(image(png(96, 96)))]}, timeout=2)
            until(lambda: not daemon.concurrency.in_flight)
            assert daemon.ledger.held["visual tokens"] == 9  # 96 x 96 in squares of 32
        finally:
            released.set()
        until(lambda: not any(daemon.ledger.held.values()))


def test_a_worker_that_waits_for_its_turn_is_as_stuck_as_the_one_before() -> None:
    worker, released = WorkerThread("test"), threading.Event()
    assert worker.stuck_s == 0
    first = worker.submit(released.wait)
    second = worker.submit(int, "7")
    until(lambda: worker.stuck_s > 0.05)
    assert second.cancel()
    assert worker.stuck_s > 0.05  # a client that leaves moves nothing
    released.set()
    assert first.result()
    until(lambda: worker.stuck_s == 0)
    worker.close()


def test_systemd_starts_a_daemon_anew_that_is_beyond_help(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3vl_edge.edge_runtime.daemon import systemd

    told: list[str] = []
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setattr(systemd, "notify", told.append)
    beyond_help = threading.Event()

    async def watch() -> None:
        feeding = asyncio.create_task(feed_watchdog(beyond_help.is_set))
        while len(told) < 3:
            await asyncio.sleep(0.001)
        beyond_help.set()
        await asyncio.sleep(0)
        before = len(told)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert len(told) == before
        feeding.cancel()

    asyncio.run(watch())
