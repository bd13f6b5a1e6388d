"""The daemon while its server is away, comes late, dies or stops, and while clients leave: nothing hangs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.chat import post_chat
from tests.support.http_api.metrics import metric
from tests.support.http_api.port import free_port
from tests.support.waiting import until

TEXT = {"messages": [{"role": "user", "content": "What is in the picture?"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def port() -> int:
    """Where these tests start servers, and where there is none between them."""
    return free_port()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, bundle: Path, port: int) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    settings = "max_waiting = 1\ndeadline_s = 60\ndrain_s = 1\n"
    with running_daemon(folder, bundle, f"http://127.0.0.1:{port}", settings) as running:
        yield running


def ask(daemon: DaemonProcess, timeout: float = 60, **more: Any) -> httpx.Response:
    return post_chat(daemon.url, {**TEXT, **more}, timeout)


def under_way(daemon: DaemonProcess) -> float:
    return metric(daemon.url, "qwen3vl_edge_device_requests_in_flight")


def wait_for(daemon: DaemonProcess, count: int) -> None:
    until(lambda: under_way(daemon) == count, lambda: f"{under_way(daemon)} requests under way, not {count}")


def test_a_server_that_comes_late_still_answers(daemon: DaemonProcess, reference: Path, port: int) -> None:
    assert "not reachable" in httpx.get(f"{daemon.url}/readyz").json()["server"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, daemon)
        wait_for(daemon, 1)
        with running_server(model=str(reference), port=port):
            assert answer.result().status_code == 200
            assert httpx.get(f"{daemon.url}/readyz").json()["server"] == "ready"


def test_a_server_killed_under_a_request_is_asked_again(daemon: DaemonProcess, reference: Path, port: int) -> None:
    with running_server(model=str(reference), port=port) as first:
        expected = ask(daemon).json()["choices"]
        first.process.send_signal(signal.SIGSTOP)  # the request arrives and nothing comes back
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, daemon)
            wait_for(daemon, 1)
            time.sleep(0.5)
            first.process.kill()
            first.process.wait()
            with running_server(model=str(reference), port=port):
                assert answer.result().json()["choices"] == expected


@pytest.mark.parametrize("stream", [False, True])
def test_one_too_many_is_told_when_to_come_back_and_who_leaves_makes_room(daemon: DaemonProcess, stream: bool) -> None:
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(ask, daemon, timeout=3, stream=stream)  # no server: it waits, and gives up long before 60 s
        wait_for(daemon, 1)
        refused = ask(daemon)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "queue_full"
        assert isinstance(gone.exception(), httpx.TimeoutException)
    wait_for(daemon, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_stays_away_is_named(tmp_path: Path, bundle: Path, stream: bool) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    with running_daemon(tmp_path, bundle, away, "deadline_s = 1\n") as running:
        refused = ask(running, stream=stream)
    assert refused.status_code == 503
    assert away in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 0
