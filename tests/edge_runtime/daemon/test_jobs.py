"""Jobs through real daemons and servers that are killed: what was accepted is answered, once and rightly."""

from __future__ import annotations

import base64
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.chat import post_chat, text_of
from tests.support.http_api.jobs import PICTURE, chat, ended, plain, post_job, show
from tests.support.http_api.metrics import metric
from tests.support.http_api.port import free_port
from tests.support.run_cli import run_process

BROKEN = {"type": "image_url", "image_url": "data:image/png;base64,AA"}
LONG = {"messages": [{"role": "user", "content": "Count from one to one thousand."}], "max_tokens": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def daemon(folder: Path, bundle: Path, server_url: str) -> Iterator[DaemonProcess]:
    with running_daemon(folder, bundle, server_url, f'spool = "{folder / "spool.db"}"\n') as running:
        yield running


def picture(samples: Path) -> str:
    return base64.b64encode((samples / PICTURE).read_bytes()).decode()


def asked(daemon: DaemonProcess, body: dict[str, Any]) -> str:
    answer = post_chat(daemon.url, body)
    assert answer.status_code == 200, answer.text
    return text_of(answer.json())


def started(url: str) -> float:
    """Keyed generations that this server began."""
    return metric(url, 'qwen3vl_edge_idempotent_requests_total{outcome="started"}')


def test_without_a_spool_the_remedy_is_named(tmp_path: Path, bundle: Path, server_url: str) -> None:
    with running_daemon(tmp_path, bundle, server_url) as off:
        for answer in (post_job(off, plain(1)), httpx.get(f"{off.url}/v1/jobs"), httpx.get(f"{off.url}/v1/jobs/x")):
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "jobs_off"
            assert "spool" in answer.json()["error"]["message"]


def test_a_job_is_accepted_and_answered_as_a_chat_is(daemon: DaemonProcess, samples: Path) -> None:
    accepted = post_job(daemon, chat(samples))
    assert accepted.status_code == 202
    assert accepted.json()["status"] == "accepted"
    job = ended(daemon, accepted.json()["id"])
    assert (job["status"], job["error"]) == ("done", None)
    assert text_of(job["answer"]) == asked(daemon, chat(samples))
    assert job["id"] in [item["id"] for item in httpx.get(f"{daemon.url}/v1/jobs").json()["data"]]


def test_no_pixels_lie_on_the_disk(daemon: DaemonProcess, folder: Path, samples: Path) -> None:
    body = chat(samples, max_tokens=64)
    assert post_job(daemon, body).status_code == 202
    kept = b"".join(path.read_bytes() for path in folder.glob("spool.db*"))
    assert b"about:blank" in kept  # a conversation is in it, and stands without its picture
    raw = (samples / PICTURE).read_bytes()
    encoded = picture(samples).encode()
    for secret in (raw, encoded):
        for start in range(0, len(secret) - 48, max(1, len(secret) // 20)):
            assert secret[start : start + 48] not in kept


def test_the_same_key_gives_the_same_job(daemon: DaemonProcess, samples: Path) -> None:
    first, second = (post_job(daemon, chat(samples), "one") for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert second.status_code == 202
    refused = post_job(daemon, chat(samples, "Another?"), "one")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    ended(daemon, first.json()["id"])
    assert post_job(daemon, chat(samples), "one").json()["id"] == first.json()["id"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": []}, 400),
        ({**plain(1), "temperature": -1}, 400),
        ({**plain(1), "model": "another"}, 404),
        ({"messages": [{"role": "user", "content": [BROKEN]}]}, 400),
    ],
    ids=["no messages", "temperature", "model", "picture"],
)  # fmt: skip
def test_a_bad_request_is_refused_at_once(daemon: DaemonProcess, body: dict[str, Any], status: int) -> None:
    before = len(httpx.get(f"{daemon.url}/v1/jobs?limit=1000").json()["data"])
    refused = post_job(daemon, body)
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["message"]
    assert len(httpx.get(f"{daemon.url}/v1/jobs?limit=1000").json()["data"]) == before


def test_a_removed_job_is_gone(daemon: DaemonProcess) -> None:
    job_id = post_job(daemon, plain(1, 200)).json()["id"]
    assert httpx.delete(f"{daemon.url}/v1/jobs/{job_id}").json()["deleted"] is True
    assert httpx.get(f"{daemon.url}/v1/jobs/{job_id}").status_code == 404
    assert httpx.delete(f"{daemon.url}/v1/jobs/{job_id}").status_code == 404
    assert ended(daemon, post_job(daemon, plain(2)).json()["id"])["status"] == "done"


def test_a_full_disk_is_told_and_survived(daemon: DaemonProcess, folder: Path, samples: Path) -> None:
    size = max(path.stat().st_size for path in folder.glob("spool.db*"))
    pid, free = daemon.process.pid, resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
    accepted, refused = [], None
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, free[1]))
    try:
        for number in range(200):
            answer = post_job(daemon, chat(samples, f"Number {number}?"))
            if answer.status_code != 202:
                refused = answer
                break
            accepted.append(answer.json()["id"])
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, free)
    assert refused is not None
    assert refused.status_code == 507
    assert refused.json()["error"]["code"] == "spool_disk"
    accepted.append(post_job(daemon, chat(samples, "Afterwards?")).json()["id"])
    assert {ended(daemon, job_id)["status"] for job_id in accepted} == {"done"}


@pytest.mark.parametrize("kills", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_right_after_accepting(tmp_path: Path, bundle: Path, server_url: str, samples: Path, kills: int) -> None:
    chance = random.Random(kills)
    settings = f'spool = "{tmp_path / "spool.db"}"\n'
    jobs: dict[str, dict[str, Any]] = {}
    before = started(server_url)
    for _ in range(kills):
        with running_daemon(tmp_path, bundle, server_url, settings) as running:
            for _ in range(chance.randint(1, 3)):
                body = chat(samples, f"What is {len(jobs)}?") if len(jobs) % 2 else plain(len(jobs), 60)
                jobs[post_job(running, body).json()["id"]] = body
            time.sleep(chance.choice((0, chance.uniform(0, 0.5))))
            running.process.kill()
            running.process.wait()
    with running_daemon(tmp_path, bundle, server_url, settings) as running:
        found = {job_id: ended(running, job_id) for job_id in jobs}
        assert {job["status"] for job in found.values()} == {"done"}
        assert started(server_url) == before + len(jobs)
        assert httpx.get(f"{running.url}/v1/jobs?limit=1000").json()["data"].__len__() == len(jobs)
        for job_id, body in jobs.items():
            assert text_of(found[job_id]["answer"]) == asked(running, body)


def frozen_under_a_job(daemon: DaemonProcess, server: subprocess.Popen[bytes]) -> str:
    """A job that a stopped server has under way; one that was answered before the server stopped is another try."""
    for _ in range(50):
        job_id: str = post_job(daemon, LONG).json()["id"]
        while show(daemon, job_id)["status"] == "waiting":
            pass
        server.send_signal(signal.SIGSTOP)
        time.sleep(0.2)  # what it had sent is recorded by then
        if show(daemon, job_id)["status"] == "running":
            return job_id
        server.send_signal(signal.SIGCONT)
    raise AssertionError("every job was answered before the server could be stopped")


def test_a_server_that_is_away_and_one_killed_under_a_job(tmp_path: Path, bundle: Path, reference: Path) -> None:
    port = free_port()
    with running_daemon(tmp_path, bundle, f"http://127.0.0.1:{port}", f'spool = "{tmp_path / "s.db"}"\n') as running:
        waiting = [post_job(running, plain(number)).json()["id"] for number in range(2)]
        time.sleep(0.5)
        assert {show(running, job_id)["status"] for job_id in waiting} == {"waiting"}
        with running_server(model=str(reference), dtype="float32", port=port) as server:
            assert [ended(running, job_id)["attempts"] for job_id in waiting] == [1, 1]
            cut = frozen_under_a_job(running, server.process)
            server.process.kill()
            server.process.wait()
        with running_server(model=str(reference), dtype="float32", port=port):
            job = ended(running, cut)
            assert job["status"] == "done"
            assert text_of(job["answer"]) == asked(running, LONG)


def test_full_spool_expiry_and_a_clean_stop(tmp_path: Path, bundle: Path) -> None:
    settings = f'spool = "{tmp_path / "s.db"}"\nspool_jobs = 1\njob_deadline_s = 2\ndrain_s = 5\n'
    with running_daemon(tmp_path, bundle, f"http://127.0.0.1:{free_port()}", settings) as running:
        job_id = post_job(running, plain(1)).json()["id"]
        refused = post_job(running, plain(2))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "spool_full"
        assert int(refused.headers["retry-after"]) > 0
        job = ended(running, job_id, 30)
        assert job["status"] == "expired"
        assert job["answer"] is None
        assert "job_deadline_s" in str(job["error"])
        assert post_job(running, plain(3)).status_code == 202
        running.process.terminate()
        assert running.process.wait(20) == 0
        assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("damage", [b"no database at all" * 500, "pages"], ids=["foreign", "pages"])
def test_a_damaged_spool_is_named_and_left_alone(
    tmp_path: Path, bundle: Path, server_url: str, damage: bytes | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool.db"
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        write_jobs(path, 20)
        data = bytearray(path.read_bytes())
        data[4096 : 4096 * 4] = random.Random(1).randbytes(4096 * 3)
        path.write_bytes(data)
    before = path.read_bytes()
    monkeypatch.setenv("QWEN3VL_EDGE_SPOOL", str(path))
    monkeypatch.setenv("QWEN3VL_EDGE_PORT", "0")
    done = run_process("edge", "--bundle", bundle, "--server", server_url)
    assert done.returncode != 0
    said = [line for line in done.stderr.split("\n") if line]
    assert len(said) == 1, done.stderr
    assert str(path) in said[0]
    assert "Move it away" in said[0]
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before


WRITER = """
import asyncio, random, sys
from pathlib import Path
from qwen3vl_edge.edge_runtime.daemon.jobs.job import NewJob
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool
async def main():
    spool, count = Spool(Path(sys.argv[1]), 2**30, 10**6), int(sys.argv[2])
    for number in range(count):
        job = await spool.add(NewJob(f"job-{number}", f"key-{number}", "h", {}, random.randbytes(20_000), 1e6))
        print(job.id, flush=True)
    spool.close()
asyncio.run(main())
"""


def write_jobs(path: Path, count: int) -> None:
    subprocess.run([sys.executable, "-c", WRITER, str(path), str(count)], check=True, stdout=subprocess.DEVNULL)


def test_what_was_acknowledged_is_in_every_copy_of_the_files(tmp_path: Path) -> None:
    """Power loss, as far as a process can play it: the files of a frozen writer, which has no time to tidy up."""
    import asyncio

    from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool

    chance, path, log = random.Random(3), tmp_path / "spool.db", tmp_path / "ids"
    with log.open("wb") as out:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "100000"], stdout=out)
    try:
        while not log.read_text():
            assert writer.poll() is None
            time.sleep(0.02)
        for number in range(12):
            time.sleep(chance.uniform(0, 0.2))
            writer.send_signal(signal.SIGSTOP)
            acknowledged = log.read_text().split("\n")[:-1]
            copy = tmp_path / str(number)
            copy.mkdir()
            for name in ("spool.db", "spool.db-wal"):
                (copy / name).write_bytes((tmp_path / name).read_bytes())
            writer.send_signal(signal.SIGCONT)
            opened = Spool(copy / "spool.db", 2**30, 10**6)
            found = {job.id for job in asyncio.run(opened.newest(10**6))}
            opened.close()
            assert set(acknowledged) <= found
            assert len(found) <= len(acknowledged) + 1  # one may be on the disk and not told yet
    finally:
        writer.kill()
        writer.wait()
