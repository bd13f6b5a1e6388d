"""A spool whose disk altered it: what was altered fails alone, is never sent or answered, and the others go on."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.daemon.jobs.job import STATUSES, NewJob
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool, SpoolDamagedError

ANSWERS = {"done-a": {"text": "the answer to a"}, "done-b": {"text": "the answer to b"}}
WAITING = ("wait-a", "wait-b", "wait-c", "wait-d")


def body(name: str) -> bytes:
    return random.Random(name).randbytes(6000)


def prompt(name: str) -> dict[str, str]:
    return {"of": name, "text": "What is it? " * 20}


async def fill(spool: Spool) -> None:
    for name in (*ANSWERS, *WAITING):
        await spool.add(NewJob(name, f"key {name}", "hash", prompt(name), body(name), 1000.0))
    for name in ANSWERS:
        claimed = await spool.claim()
        assert claimed is not None
        assert claimed.job.id == name
        await spool.finish(name, answer=ANSWERS[name])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    spool = Spool(path, 2**20, 100)
    asyncio.run(fill(spool))
    spool.close()
    return path


async def work_off(spool: Spool) -> dict[str, str]:
    """Do with every job what a daemon and its clients do; states by id. What was altered is never believed."""
    for _ in range(20):
        if (claimed := await spool.claim()) is None:
            break
        assert claimed.prompt == prompt(claimed.job.id)
        assert claimed.body == body(claimed.job.id)
        assert await spool.finish(claimed.job.id, answer={"of": claimed.job.id})
    assert await spool.next_due() is None, "nothing is left that a worker would try for ever"
    found = {}
    for listed in await spool.newest(100):
        job = await spool.get(listed.id)
        assert job is not None
        assert job.status in STATUSES
        if job.status == "done":
            assert job.answer == ANSWERS.get(job.id, {"of": job.id})
        elif job.status == "failed":
            assert job.error is not None
            assert "altered on disk" in job.error["message"]
        found[job.id] = job.status
    counts = spool.counts
    assert sum(counts.jobs.values()) == len(found) + spool.unreadable
    await spool.sweep(-1.0)
    assert await spool.newest(100) == []
    return found


def worked_off(path: Path) -> dict[str, str]:
    spool = Spool(path, 2**20, 100)
    try:
        return asyncio.run(work_off(spool))
    finally:
        spool.close()


ALL_DONE = dict.fromkeys((*ANSWERS, *WAITING), "done")


@pytest.mark.parametrize(
    ("what", "job"),
    [
        ("UPDATE contents SET prompt = '{' WHERE number = 3", "wait-a"),
        ("UPDATE contents SET prompt = NULL WHERE number = 3", "wait-a"),
        ("UPDATE contents SET body = NULL WHERE number = 3", "wait-a"),
        ("UPDATE contents SET body = 7 WHERE number = 3", "wait-a"),
        ("UPDATE contents SET result = '{}' WHERE number = 3", "wait-a"),
        ("DELETE FROM contents WHERE number = 3", "wait-a"),
        ('UPDATE contents SET result = \'{"text": "forged"}\' WHERE number = 1', "done-a"),
        ("UPDATE contents SET result = '{' WHERE number = 1", "done-a"),
        ("UPDATE jobs SET status = 'done' WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET status = 'waitinh' WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET status = NULL WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET deadline = 'soon' WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET due = 9e999 WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET created = 9e999, attempts = 'many', bytes = 'few' WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET bytes = 4611686018427387904 WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET key = 7, request_hash = x'00' WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET row_hash = NULL WHERE number = 3", "wait-a"),
        ("UPDATE jobs SET finished = 'x' WHERE number = 1", "done-a"),
    ],
)
def test_an_altered_field_fails_its_job_alone(path: Path, what: str, job: str) -> None:
    database = sqlite3.connect(path)
    with database:
        assert database.execute(what).rowcount == 1
    database.close()
    assert worked_off(path) == {**ALL_DONE, job: "failed"}


def test_text_that_is_no_text_any_more_fails_its_job_alone(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b'"of": "wait-a"') == 1
    path.write_bytes(content.replace(b'"of": "wait-a"', b'"of": "w\xffit-a"'))
    assert worked_off(path) == {**ALL_DONE, "wait-a": "failed"}


def test_an_altered_clock_does_not_expire_anything(path: Path) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE clock SET seconds = 1e12")
    database.close()
    assert worked_off(path) == ALL_DONE


@pytest.mark.parametrize("seed", range(4))
def test_whatever_bit_is_altered(path: Path, tmp_path: Path, seed: int) -> None:
    """The file is refused as damaged, or the others go on; what is sent and answered is always as it was given."""
    chance, whole = random.Random(seed), path.read_bytes()
    opened = refused = failed = 0
    for number in range(60):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        altered = tmp_path / f"{number}.db"
        altered.write_bytes(content)
        try:
            found = worked_off(altered)
        except InputError:
            refused += 1
            continue
        opened += 1
        failed += "failed" in found.values()
        assert sum(status == "done" for status in found.values()) >= len(ALL_DONE) - 1
    assert opened > refused
    assert failed > opened / 4  # most of the file are bodies


def with_page_altered(path: Path, page_of: bytes, work: Callable[[Spool], None]) -> None:
    """Open the spool, then let the disk lose a page that was read and dropped from memory."""
    spool = Spool(path, 2**24, 1000)
    try:
        spool._thread.submit(lambda: spool._store._database.execute("PRAGMA cache_size = 1")).result()
        content = path.read_bytes()
        page = content.index(page_of) // 4096 * 4096
        with path.open("r+b") as file:
            file.seek(page)
            file.write(b"\xff" * 64)
        work(spool)
    finally:
        spool.close()


def test_a_page_that_is_lost_while_it_runs_costs_the_jobs_on_it(path: Path) -> None:
    """A page of contents; its neighbours are answered."""

    def work(spool: Spool) -> None:
        async def run() -> set[str]:
            done = set()
            while (claimed := await spool.claim()) is not None:
                assert claimed.body == body(claimed.job.id)
                await spool.finish(claimed.job.id, answer={})
                done.add(claimed.job.id)
            assert await spool.next_due() is None
            assert 0 < spool.unreadable < len(WAITING)
            return done

        done = asyncio.run(run())
        assert len(done) == len(WAITING) - spool.unreadable

    with_page_altered(path, json.dumps(prompt("wait-b")).encode(), work)


def test_a_lost_page_of_the_index_is_told(path: Path) -> None:
    def work(spool: Spool) -> None:
        async def run() -> None:
            await spool.next_due()

        with pytest.raises(SpoolDamagedError, match="damaged"):
            asyncio.run(run())

    database = sqlite3.connect(path)
    (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_due'").fetchone()
    database.close()
    start = (page - 1) * 4096
    with_page_altered(path, path.read_bytes()[start : start + 4096], work)


def cost(path: Path, jobs: int) -> dict[str, int]:
    """Steps of SQLite's machine for each call, with so many other jobs in the spool."""
    spool, steps, counted = Spool(path, 2**30, 10**6), [0], {}

    def step() -> int:
        steps[0] += 1
        return 0

    async def run() -> None:
        for number in range(jobs):
            await spool.add(NewJob(f"old-{number}", None, "hash", {}, b"body", 1000.0))
            if number % 2:
                claimed = await spool.claim()
                assert claimed is not None
                await spool.finish(claimed.job.id, answer={})
        spool._thread.submit(lambda: spool._store._database.set_progress_handler(step, 1)).result()

        async def measured(name: str, call: Callable[[], object]) -> None:
            steps[0] = 0
            await call()  # type: ignore[misc]
            counted[name] = steps[0]

        await measured("add", lambda: spool.add(NewJob("new", "key", "hash", {}, b"body", 1000.0)))
        await measured("find", lambda: spool.find("key", "hash"))
        await measured("due", spool.next_due)
        await measured("claim", spool.claim)
        await measured("newest", lambda: spool.newest(5))
        await measured("sweep", lambda: spool.sweep(1000.0))
        await measured("remove", lambda: spool.remove("new"))

    asyncio.run(run())
    spool.close()
    return counted


def test_a_call_costs_the_same_however_many_jobs_there_are(tmp_path: Path) -> None:
    few, many = cost(tmp_path / "few.db", 10), cost(tmp_path / "many.db", 400)
    assert {name: steps for name, steps in many.items() if steps > 1.2 * few[name] + 20} == {}


def test_counts_agree_with_the_file(path: Path) -> None:
    spool = Spool(path, 2**20, 100)

    async def change() -> None:
        claimed = await spool.claim()
        assert claimed is not None
        await spool.postpone(claimed.job.id, 5)
        await spool.finish("wait-b", answer={"not": "running"})
        claimed = await spool.claim()
        assert claimed is not None
        await spool.finish(claimed.job.id, error={"message": "no"})
        await spool.remove("done-a")

    asyncio.run(change())
    counts = spool.counts
    assert counts.jobs == {"done": 1, "failed": 1, "waiting": 3}
    spool.close()
    again = Spool(path, 2**20, 100)
    assert again.counts == counts
    again.close()
