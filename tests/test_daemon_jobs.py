"""`/v1/jobs` with real daemons and servers that are killed: accepted means answered, once, and rightly."""

from __future__ import annotations

import base64
import random
import resource
import signal
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemon_process import DaemonProcess, running_daemon
from metric_values import metric

from tools.server_process import ServerProcess, running_server

GENERATIONS = "qwen3vl_edge_generations_total"
QUESTIONS = ("What colour is the circle?", "How many objects are there?", "What is in the picture?")


def chat(samples: Path, number: int = 0, **more: Any) -> dict[str, Any]:
    picture = base64.b64encode((samples / "colour.png").read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    text = {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}
    return {"messages": [{"role": "user", "content": [image, text]}], "max_tokens": 12, **more}


def post(daemon: DaemonProcess, body: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return httpx.post(f"{daemon.url}/v1/jobs", json=body, headers=headers, timeout=60)


def job(daemon: DaemonProcess, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{daemon.url}/v1/jobs/{job_id}", timeout=20).json()
    return found


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(daemon: DaemonProcess, job_id: str, status: str = "done") -> dict[str, Any]:
    wait_for(lambda: job(daemon, job_id)["status"] not in ("waiting", "running"))
    found = job(daemon, job_id)
    assert found["status"] == status, found
    return found


def answer_of(found: dict[str, Any]) -> Any:
    return found["answer"]["choices"]


def kill(process: Any) -> None:
    process.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server_on(port: int, reference: Path) -> Iterator[ServerProcess]:
    with running_server(model=str(reference), dtype="float32", port=port) as running:
        yield running


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("daemon")


@pytest.fixture(scope="module")
def daemon(folder: Path, bundle: Path, port: int) -> Iterator[DaemonProcess]:
    """Its server is there only while a test runs one."""
    settings = f'precision = "fp32"\nspool = "{folder / "jobs.db"}"\nspool_jobs = 8\nmax_body_mib = 8\n'
    with running_daemon(folder, bundle, f"http://127.0.0.1:{port}", settings) as running:
        yield running


@pytest.mark.parametrize("rounds", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_a_daemon_killed_again_and_again_answers_every_job_once(
    tmp_path: Path, bundle: Path, samples: Path, server_url: str, rounds: int
) -> None:
    """kill -9 right after 202, or while jobs run; the server generates each job once, as their keys say."""
    settings = f'precision = "fp32"\nspool = "{tmp_path / "jobs.db"}"\njob_concurrency = 2\n'
    chance, accepted = random.Random(rounds), dict[str, int]()
    before = metric(server_url, GENERATIONS)
    for _ in range(rounds):
        with running_daemon(tmp_path, bundle, server_url, settings) as running:
            for number in range(chance.randint(1, 4)):
                answer = post(running, chat(samples, number), key=uuid.uuid4().hex)
                assert answer.status_code == 202
                accepted[answer.json()["id"]] = number
            time.sleep(chance.choice([0, 0, 0.05, 0.2]))
            kill(running.process)
    with running_daemon(tmp_path, bundle, server_url, settings) as running:
        found = {job_id: ended(running, job_id) for job_id in accepted}
        generated = metric(server_url, GENERATIONS) - before
        expected = [
            httpx.post(f"{running.url}/v1/chat/completions", json=chat(samples, number), timeout=60).json()["choices"]
            for number in range(len(QUESTIONS))
        ]
    for job_id, number in accepted.items():
        assert answer_of(found[job_id]) == expected[number % len(QUESTIONS)]
        assert found[job_id]["answer"]["id"] == f"chatcmpl-{job_id}"
    assert generated == len(accepted)


def test_jobs_wait_for_a_server_and_keep_their_order(
    daemon: DaemonProcess, reference: Path, samples: Path, port: int
) -> None:
    ids = [post(daemon, chat(samples, number)).json()["id"] for number in range(3)]
    assert [job(daemon, job_id)["status"] for job_id in ids] == ["waiting"] * 3
    assert metric(daemon.url, 'qwen3vl_edge_device_jobs{status="waiting"}') == 3
    assert metric(daemon.url, "qwen3vl_edge_device_spool_bytes") > 0
    with server_on(port, reference):
        found = [ended(daemon, job_id) for job_id in ids]
        asked = httpx.post(f"{daemon.url}/v1/chat/completions", json=chat(samples), timeout=60).json()
    assert answer_of(found[0]) == asked["choices"]
    assert found[0]["answer"]["usage"] == asked["usage"]
    assert [one["attempts"] for one in found] == [1, 1, 1]
    newest = httpx.get(f"{daemon.url}/v1/jobs", params={"limit": 2}).json()["data"]
    assert [one["id"] for one in newest] == ids[:0:-1]
    for job_id in ids:
        assert httpx.delete(f"{daemon.url}/v1/jobs/{job_id}").json()["deleted"]
    assert httpx.get(f"{daemon.url}/v1/jobs/{ids[0]}").status_code == 404


def test_a_server_killed_within_a_generation_is_asked_again(
    daemon: DaemonProcess, reference: Path, samples: Path, port: int
) -> None:
    with server_on(port, reference) as server:
        job_id = post(daemon, chat(samples, max_tokens=500)).json()["id"]
        wait_for(lambda: job(daemon, job_id)["status"] != "waiting")
        kill(server.process)
    with server_on(port, reference):
        found = ended(daemon, job_id)
        expected = httpx.post(
            f"{daemon.url}/v1/chat/completions", json=chat(samples, max_tokens=500), timeout=60
        ).json()
    assert answer_of(found) == expected["choices"]
    httpx.delete(f"{daemon.url}/v1/jobs/{job_id}")


def test_what_the_server_refuses_has_failed_in_its_words(
    daemon: DaemonProcess, reference: Path, samples: Path, port: int
) -> None:
    with server_on(port, reference):
        job_id = post(daemon, chat(samples, max_tokens=900_000)).json()["id"]
        found = ended(daemon, job_id, "failed")
    assert "max_new_tokens" in found["error"]["message"]
    assert found["error"]["param"] == "sampling.max_new_tokens"
    assert found["answer"] is None
    httpx.delete(f"{daemon.url}/v1/jobs/{job_id}")


def test_one_key_is_one_job_and_bad_requests_are_refused_now(daemon: DaemonProcess, samples: Path) -> None:
    first = post(daemon, chat(samples), "mine")
    again = post(daemon, chat(samples, stream=True), "mine")
    other = post(daemon, chat(samples, 1), "mine")
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 409)
    assert first.json()["status"] == "accepted"
    assert first.json()["id"] == again.json()["id"]
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    broken = chat(samples)
    broken["messages"][0]["content"][0]["image_url"]["url"] = "data:image/png;base64,AAAA"
    assert post(daemon, broken).status_code == 400
    assert post(daemon, chat(samples, logprobs=True)).status_code == 400
    assert httpx.get(f"{daemon.url}/v1/jobs").json()["data"][0]["id"] == first.json()["id"]
    httpx.delete(f"{daemon.url}/v1/jobs/{first.json()['id']}")


def test_a_full_spool_says_when_to_come_back(daemon: DaemonProcess, samples: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: post(daemon, chat(samples, number)), range(10)))
    assert sorted(answer.status_code for answer in answers) == [202] * 8 + [429] * 2
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "spool_full"
    assert int(refused.headers["retry-after"]) > 0
    for answer in answers:
        if answer.status_code == 202:
            httpx.delete(f"{daemon.url}/v1/jobs/{answer.json()['id']}")


def test_a_disk_that_takes_no_more_is_a_507_and_the_daemon_goes_on(
    daemon: DaemonProcess, folder: Path, samples: Path
) -> None:
    kept = post(daemon, chat(samples)).json()["id"]
    size = max(Path(f"{folder / 'jobs.db'}{suffix}").stat().st_size for suffix in ("", "-wal"))
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
    try:
        statuses = [post(daemon, chat(samples)).status_code for _ in range(2)]
    finally:
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert statuses == [507, 507]
    assert [one["id"] for one in httpx.get(f"{daemon.url}/v1/jobs").json()["data"]] == [kept]
    after = post(daemon, chat(samples))
    assert after.status_code == 202
    for job_id in (kept, after.json()["id"]):
        httpx.delete(f"{daemon.url}/v1/jobs/{job_id}")


def test_no_pixels_are_kept_and_jobs_expire_across_a_stop(tmp_path: Path, bundle: Path, samples: Path) -> None:
    spool = tmp_path / "jobs.db"
    away = f"http://127.0.0.1:{free_port()}"
    settings = f'spool = "{spool}"\njob_deadline_s = 4\n'
    with running_daemon(tmp_path, bundle, away, settings) as running:
        ids = [post(running, chat(samples)).json()["id"]]
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
    with sqlite3.connect(spool) as database:
        (prompt,) = database.execute("SELECT prompt FROM jobs").fetchone()
    assert QUESTIONS[0] in prompt
    assert "base64" not in prompt
    assert base64.b64encode((samples / "colour.png").read_bytes())[:40] not in spool.read_bytes()
    assert (samples / "colour.png").read_bytes()[-60:] not in spool.read_bytes()
    with running_daemon(tmp_path, bundle, away, settings) as running:
        assert ended(running, ids[0], "expired")["answer"] is None


def test_without_a_spool_the_routes_say_how_to_get_one(tmp_path: Path, bundle: Path, samples: Path) -> None:
    with running_daemon(tmp_path, bundle, f"http://127.0.0.1:{free_port()}") as running:
        answers = [post(running, chat(samples)), httpx.get(f"{running.url}/v1/jobs")]
    for answer in answers:
        assert answer.status_code == 404
        assert "spool" in answer.json()["error"]["message"]


def test_a_clients_own_key_gets_the_same_answer_once(
    tmp_path: Path, bundle: Path, samples: Path, server_url: str
) -> None:
    """Through the daemon, sampled: the first client gives up, the second gets what was generated for the first."""
    body = chat(samples, max_tokens=300, temperature=2.0, stream=True)
    before, headers = metric(server_url, GENERATIONS), {"Idempotency-Key": uuid.uuid4().hex}
    with running_daemon(tmp_path, bundle, server_url) as running:
        url = f"{running.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers) as response:
            lines = response.iter_lines()
            seen = [next(lines) for _ in range(3)]
        assert seen
        texts = [
            httpx.post(url, json={**body, "stream": False}, headers=headers, timeout=60).json()["choices"]
            for _ in range(2)
        ]
        refused = httpx.post(url, json={**body, "max_tokens": 5}, headers=headers, timeout=60)
    assert texts[0] == texts[1]
    assert metric(server_url, GENERATIONS) == before + 1
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
