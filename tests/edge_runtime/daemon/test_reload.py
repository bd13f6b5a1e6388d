"""SIGHUP: a new bundle takes over between two requests, a broken one changes nothing, none of it leaks."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from tests.support.http_api.chat import image, post_chat, user
from tests.support.http_api.metrics import metric_sum
from tests.support.waiting import until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reload")


@pytest.fixture(scope="module")
def daemon(folder: Path, bundle: Path, server_url: str) -> Iterator[DaemonProcess]:
    (folder / "current").symlink_to(bundle)
    with running_daemon(folder, folder / "current", server_url, "max_waiting = 4\n") as running:
        yield running


def point(folder: Path, to: Path) -> None:
    """Move the link as a deployment does: a new link, renamed over the old one."""
    (folder / "next").symlink_to(to)
    (folder / "next").rename(folder / "current")


def reload(daemon: DaemonProcess) -> dict[str, Any]:
    """SIGHUP, and how it ended."""

    def count() -> float:
        return metric_sum(daemon.url, "qwen3vl_edge_device_reloads_total")

    before = count()
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: count() != before, lambda: daemon.log.read_text()[-1000:])
    found: dict[str, Any] = httpx.get(f"{daemon.url}/readyz").json()
    return found


def ask(daemon: DaemonProcess, samples: Path) -> httpx.Response:
    chat = {"messages": [user(image(samples / "colour.png"), "What colour is the cross?")], "max_tokens": 8}
    return post_chat(daemon.url, chat)


def test_a_new_bundle_takes_over_under_load(
    daemon: DaemonProcess, folder: Path, bundle: Path, small_bundle: Path, samples: Path
) -> None:
    expected = ask(daemon, samples).json()["choices"]
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(daemon, samples))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        point(folder, small_bundle)
        found = reload(daemon)
        assert found["last_reload"]["result"] == "ok"
        assert found["buckets"] == ["1x8x8", "4x6x8"]
        assert not found["any_size"]
        seen = len(answers)
        while len(answers) < seen + 2:
            time.sleep(0.05)
        point(folder, bundle)
        assert len(reload(daemon)["buckets"]) > 2
    finally:
        stop.set()
        asking.join()
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert answers[-1].json()["choices"] == expected


def test_a_broken_bundle_changes_nothing(daemon: DaemonProcess, folder: Path, bundle: Path, samples: Path) -> None:
    broken = Path(shutil.copytree(bundle, folder / "broken"))
    weights = max(broken.rglob("*"), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-100])
    point(folder, broken)
    found = reload(daemon)
    assert found["last_reload"]["result"] == "failed"
    assert weights.name in found["last_reload"]["error"]["message"]
    assert found["any_size"]
    assert ask(daemon, samples).status_code == 200
    config = folder / "edge.toml"
    good = config.read_text()
    config.write_text(good + "prot = 1\n")
    assert "prot" in str(reload(daemon)["last_reload"])
    config.write_text(good.replace("max_waiting = 4", "max_waiting = 5"))
    point(folder, bundle)
    assert reload(daemon)["last_reload"]["result"] == "ok"
    assert "need a restart: max_waiting" in daemon.log.read_text()


def test_reloads_leak_neither_threads_nor_memory(daemon: DaemonProcess, samples: Path) -> None:
    def threads_and_memory() -> tuple[int, int]:
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        numbers = {name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) for name in ("Threads", "VmRSS")}  # type: ignore[index]
        return numbers["Threads"], numbers["VmRSS"] * 1024

    for _ in range(2):
        reload(daemon)
        ask(daemon, samples)
    threads, memory = threads_and_memory()
    for _ in range(5):
        reload(daemon)
        assert ask(daemon, samples).status_code == 200

    def back() -> bool:  # the last old pipeline closes beside
        threads_after, memory_after = threads_and_memory()
        return threads_after <= threads + 2 and memory_after < memory * 1.05

    until(back, threads_and_memory, within=20)
