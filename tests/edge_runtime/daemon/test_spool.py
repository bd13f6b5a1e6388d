"""The spool's promises: what was accepted is kept, nothing is half-written, a bad file is named and not replaced."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from qwen3vl_edge.contract.errors import InputError, KeyReusedError
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, decode_request, encode_request
from qwen3vl_edge.edge_runtime.daemon.jobs.job import NewJob, SpoolFullError
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool, SpoolDiskError
from tests.support.paths import ROOT

EARLIER = ROOT / "tests" / "support" / "files_of_an_earlier_version"

T = TypeVar("T")


@contextmanager
def opened(path: Path, max_bytes: int = 2**20, max_waiting: int = 100) -> Iterator[Spool]:
    spool = Spool(path, max_bytes, max_waiting)
    try:
        yield spool
    finally:
        spool.close()


def with_spool(path: Path, work: Callable[[Spool], Awaitable[T]]) -> T:
    async def run(spool: Spool) -> T:
        return await work(spool)

    with opened(path) as spool:
        return asyncio.run(run(spool))


def new(name: str, key: str | None = None, size: int = 100, lifetime_s: float = 100.0) -> NewJob:
    return NewJob(name, key, "hash", {"name": name}, name.encode() * size, lifetime_s)


def test_jobs_come_in_order_and_are_answered_once(tmp_path: Path) -> None:
    async def work(spool: Spool) -> None:
        for name in ("a", "b", "c"):
            await spool.add(new(name))
        first = await spool.claim()
        assert first is not None
        assert (first.job.id, first.prompt, first.body) == ("a", {"name": "a"}, b"a" * 100)
        second = await spool.claim()
        assert second is not None
        await spool.postpone("b", 1000)
        third = await spool.claim()
        assert third is not None
        assert (second.job.id, third.job.id) == ("b", "c")
        assert await spool.claim() is None
        assert await spool.finish("a", answer={"text": "1"})
        assert not await spool.finish("a", answer={"text": "2"})
        assert not await spool.finish("b", answer={"text": "not running"})
        assert await spool.finish("c", error={"message": "no"})
        assert [job.id for job in await spool.newest(10)] == ["c", "b", "a"]
        jobs = [job for name in "abc" if (job := await spool.get(name)) is not None]
        found = {job.id: (job.status, job.answer, job.error, job.attempts) for job in jobs}
        assert found == {
            "a": ("done", {"text": "1"}, None, 1),
            "b": ("waiting", None, None, 1),
            "c": ("failed", None, {"message": "no"}, 1),
        }
        assert spool.counts.jobs == {"done": 1, "waiting": 1, "failed": 1}
        assert await spool.remove("a")
        assert not await spool.remove("a")

    with_spool(tmp_path / "jobs.db", work)


def test_a_spool_of_an_earlier_release_opens_and_its_job_can_be_sent(tmp_path: Path) -> None:
    shutil.copy(EARLIER / "spool.sqlite3", tmp_path / "jobs.db")
    written = (EARLIER / "request.bin").read_bytes()

    async def work(spool: Spool) -> None:
        assert spool.counts.jobs == {"done": 1, "waiting": 1}
        done = await spool.get("a" * 32)
        assert done is not None
        assert done.answer == {"text": "red"}
        claimed = await spool.claim()
        assert claimed is not None
        assert (claimed.job.id, claimed.prompt) == ("b" * 32, {"model": "m", "n": 2})
        assert claimed.body == written
        body = encode_request(decode_request(claimed.body, keep_packed=True))
        assert bytes(body) == written
        assert body.headers == {"Content-Type": CONTENT_TYPE, "Content-Length": str(len(written))}
        assert await spool.finish(claimed.job.id, answer={"text": "blue"})

    with_spool(tmp_path / "jobs.db", work)


def test_what_ran_when_it_stopped_waits_after_the_start(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "jobs.db"

    async def leave(spool: Spool) -> None:
        await spool.add(new("a", "key"))
        assert await spool.claim() is not None

    async def find(spool: Spool) -> None:
        assert await spool.next_due() == 0
        again = await spool.claim()
        assert again is not None
        assert (again.job.id, again.job.attempts) == ("a", 1)
        assert (await spool.get("a")).attempts == 2  # type: ignore[union-attr]

    with_spool(path, leave)
    assert path.stat().st_mode & 0o077 == 0
    with_spool(path, find)


def test_a_key_is_one_job(tmp_path: Path) -> None:
    async def work(spool: Spool) -> None:
        assert await spool.find("key", "hash") is None
        jobs = await asyncio.gather(*(spool.add(new(name, "key")) for name in ("a", "b")))
        assert {job.id for job in jobs} == {"a"}
        with pytest.raises(KeyReusedError):
            await spool.find("key", "another")
        with pytest.raises(KeyReusedError):
            await spool.add(NewJob("c", "key", "another", {}, b"", 1))
        assert len(await spool.newest(10)) == 1

    with_spool(tmp_path / "jobs.db", work)


def test_expired_and_old_jobs_go(tmp_path: Path) -> None:
    async def work(spool: Spool) -> None:
        await spool.add(new("late", lifetime_s=-1))
        await spool.add(new("good"))
        assert (await spool.claim()).job.id == "good"  # type: ignore[union-attr]
        await spool.postpone("good", 0)
        left = await spool.sweep(keep_s=1000)
        assert left is not None
        assert 0 < left <= 100
        assert [job.status for job in await spool.newest(10)] == ["waiting", "expired"]
        await spool.sweep(keep_s=-1)
        assert [job.id for job in await spool.newest(10)] == ["good"]

    with_spool(tmp_path / "jobs.db", work)


def test_full_is_told_and_room_comes_back(tmp_path: Path) -> None:
    async def run(spool: Spool) -> None:
        await spool.add(new("a", size=600))
        with pytest.raises(SpoolFullError, match="spool is full") as refused:
            await spool.add(new("b", size=600))
        assert (refused.value.field, refused.value.status) == ("spool_mib", 429)
        await spool.add(new("c", size=10))
        with pytest.raises(SpoolFullError) as refused:
            spool.check_room()
        assert refused.value.field == "spool_jobs"
        await spool.remove("a")
        spool.check_room()
        await spool.add(new("b", size=600))

    with opened(tmp_path / "jobs.db", max_bytes=1000, max_waiting=2) as spool:
        asyncio.run(run(spool))


def test_a_full_disk_refuses_the_job_and_nothing_else(tmp_path: Path) -> None:
    """A file system of 2 MiB, as a root of a Linux machine can make one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("needs to mount a small tmpfs: root on Linux; test_jobs has a limit on the file's size")

    async def work(spool: Spool) -> list[str]:
        kept: list[str] = []

        async def fill() -> None:
            while len(kept) < 100:
                kept.append((await spool.add(new(f"{len(kept):03}", size=30_000))).id)

        with pytest.raises(SpoolDiskError) as refused:
            await fill()
        assert (refused.value.status, refused.value.code) == (507, "spool_disk")
        assert 3 < len(kept) < 100
        assert [job.id for job in await spool.newest(100)] == kept[::-1]
        assert spool.counts.jobs == {"waiting": len(kept)}
        return kept

    async def after(spool: Spool) -> list[str]:
        return [job.id for job in await spool.newest(100)]

    try:
        with opened(tmp_path / "jobs.db", max_bytes=2**30) as spool:
            kept = asyncio.run(work(spool))
        assert with_spool(tmp_path / "jobs.db", after) == kept[::-1]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(4096, len(content), 512):
        content[place : place + 256] = bytes(256)
    path.write_bytes(content)


def no_database(path: Path) -> None:
    path.write_bytes(b"these are somebody's notes, and no database\n" * 100)


def of_another_program(path: Path) -> None:
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE photos (name TEXT)")
    other.close()


@pytest.mark.parametrize("spoil", [damaged, no_database, of_another_program])
def test_a_file_that_is_no_spool_is_named_and_left_alone(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "jobs.db"

    async def fill(spool: Spool) -> None:
        for name in ("a", "b", "c"):
            await spool.add(new(name, size=3000))

    with_spool(path, fill)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(InputError) as refused:
        Spool(path, 2**20, 10)
    assert str(path) in refused.value.message
    assert refused.value.remedy
    if spoil is not of_another_program:  # SQLite notes in its header that the file is in WAL mode
        assert path.read_bytes() == before


def test_a_second_daemon_is_kept_out(tmp_path: Path) -> None:
    with opened(tmp_path / "jobs.db"), pytest.raises(InputError, match="another daemon"):
        Spool(tmp_path / "jobs.db", 2**20, 10)


def test_whatever_moment_the_power_goes(tmp_path: Path) -> None:
    """Copies of the files at random moments of writing hold all that was promised before, and open without repair.

    The writer is stopped for each copy, so that a copy is one moment. What a disk had not written of the last, yet
    unconfirmed commit is the next test's.
    """
    path, chance = tmp_path / "jobs.db", random.Random(3)
    command = [sys.executable, "-m", "tests.support.spool_writer", str(path)]
    with (tmp_path / "said").open("wb") as said:
        writer = subprocess.Popen(command, cwd=ROOT, stdout=said)
    moments: list[tuple[Path, list[str]]] = []
    try:
        while (tmp_path / "said").read_bytes().count(b"\n") < 20:
            assert writer.poll() is None
            time.sleep(0.02)
        for number in range(12):
            time.sleep(chance.uniform(0.01, 0.15))
            promised = (tmp_path / "said").read_text().splitlines()
            writer.send_signal(signal.SIGSTOP)
            copy = tmp_path / str(number) / path.name
            copy.parent.mkdir()
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
            writer.send_signal(signal.SIGCONT)
            moments.append((copy, promised))
    finally:
        writer.kill()
        writer.wait()
    assert len(moments[-1][1]) > len(moments[0][1])

    async def found(spool: Spool) -> dict[str, tuple[str, object]]:
        names = [job.id for job in await spool.newest(10**6)]
        jobs = [job for name in names if (job := await spool.get(name)) is not None]
        return {job.id: (job.status, job.answer) for job in jobs}

    for copy, promised in moments:
        with opened(copy, max_bytes=2**30) as spool:
            jobs = asyncio.run(found(spool))
        for line in promised:
            word, _, job = line.partition(" ")
            assert job in jobs
            if word == "done":
                assert jobs[job] == ("done", {"of": job})


@pytest.mark.parametrize("lost", [1, 5_000, 30_000])
def test_a_torn_log_loses_its_end_and_nothing_before(tmp_path: Path, lost: int) -> None:
    """A commit that did not reach the disk whole is not there at all; those before it are."""
    path, torn = tmp_path / "jobs.db", tmp_path / "torn" / "jobs.db"
    torn.parent.mkdir()

    async def fill(spool: Spool) -> None:
        for number in range(20):
            await spool.add(new(f"job {number:02}", size=1000))
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{torn}{suffix}")

    async def found(spool: Spool) -> list[str]:
        names = [job.id for job in await spool.newest(100)]
        while await spool.claim() is not None:
            pass
        assert spool.counts.jobs == {"running": len(names)}, "none was altered"
        return names[::-1]

    with_spool(path, fill)
    wal = Path(f"{torn}-wal")
    wal.write_bytes(wal.read_bytes()[:-lost])
    names = with_spool(torn, found)
    assert names == [f"job {number:02}" for number in range(len(names))]
    assert 10 < len(names) < 20
