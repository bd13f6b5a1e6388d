"""Lifetimes of jobs by a clock that nobody can set: a boot a year behind, NTP, a suspended machine, restarts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from qwen3vl_edge.edge_runtime.daemon.jobs.job import Job, NewJob
from qwen3vl_edge.edge_runtime.daemon.jobs.job_clock import MachineClocks, machine_clocks
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool

T = TypeVar("T")
YEAR = 365 * 86_400.0
LIFETIME = 100.0


class Machine:
    """A machine's clocks, set by hand."""

    def __init__(self) -> None:
        self.boot, self.since_boot, self.wall = "first", 40.0, 1.8e9

    def passes(self, seconds: float) -> None:
        self.since_boot += seconds
        self.wall += seconds

    def boots(self, wall: float) -> None:
        self.boot, self.since_boot, self.wall = f"{self.boot} and then", 3.0, wall

    @contextmanager
    def spool(self, path: Path) -> Iterator[Spool]:
        spool = Spool(path, 2**20, 100, MachineClocks(self.boot, lambda: self.since_boot, lambda: self.wall))
        try:
            yield spool
        finally:
            spool.close()


def done(work: Awaitable[T]) -> T:
    async def run() -> T:
        return await work

    return asyncio.run(run())


def add(spool: Spool, name: str = "a") -> Job:
    return done(spool.add(NewJob(name, None, "hash", {}, b"body", LIFETIME)))


def left(spool: Spool) -> float | None:
    """Seconds until the next job expires, after those that have are marked."""
    return done(spool.sweep(LIFETIME))


def status(spool: Spool, name: str = "a") -> str:
    job = done(spool.get(name))
    return "gone" if job is None else job.status


@pytest.mark.parametrize("jump", [YEAR, -YEAR, 3600.0, -3600.0])
def test_a_clock_that_is_set_changes_no_lifetime(tmp_path: Path, jump: float) -> None:
    machine = Machine()
    with machine.spool(tmp_path / "jobs.db") as spool:
        assert add(spool).deadline == machine.wall + LIFETIME
        add(spool, "answered")
        machine.passes(10)
        machine.wall += jump
        assert left(spool) == LIFETIME - 10
        job = done(spool.get("a"))
        assert job is not None
        assert job.deadline == pytest.approx(machine.wall + LIFETIME - 10), "told by the clock as it is now"
        claimed = done(spool.claim())
        assert claimed is not None
        assert claimed.seconds_left == LIFETIME - 10
        done(spool.postpone("a", 30))
        machine.wall -= jump
        claimed = done(spool.claim())
        assert claimed is not None
        assert claimed.job.id == "answered"
        done(spool.finish("answered", answer={}))
        assert done(spool.next_due()) == 30
        machine.wall += jump
        machine.passes(89)
        assert left(spool) == 1
        machine.passes(1)
        assert left(spool) is None
        assert (status(spool), status(spool, "answered")) == ("expired", "done")
        machine.wall += jump
        machine.passes(10)  # the answer is kept for LIFETIME, the expired job for longer
        left(spool)
        assert (status(spool), status(spool, "answered")) == ("expired", "gone")


def test_a_boot_a_year_behind_and_then_ntp(tmp_path: Path) -> None:
    machine, path = Machine(), tmp_path / "jobs.db"
    with machine.spool(path) as spool:
        add(spool, "before")
        machine.passes(40)
    machine.boots(machine.wall - YEAR)
    with machine.spool(path) as spool:
        assert left(spool) == LIFETIME - 40
        add(spool, "behind")
        machine.passes(10)
        machine.wall += YEAR
        assert left(spool) == LIFETIME - 50
        assert (status(spool, "before"), status(spool, "behind")) == ("waiting", "waiting")
        machine.passes(50)
        assert left(spool) == LIFETIME - 60
        assert (status(spool, "before"), status(spool, "behind")) == ("expired", "waiting")


def test_a_restart_of_the_daemon_alone_counts_the_time_between(tmp_path: Path) -> None:
    machine, path = Machine(), tmp_path / "jobs.db"
    with machine.spool(path) as spool:
        add(spool)
        machine.passes(20)
    machine.passes(30)
    with machine.spool(path) as spool:
        assert left(spool) == LIFETIME - 50
    machine.passes(60)
    with machine.spool(path) as spool:
        assert left(spool) is None
        assert status(spool) == "expired"


@pytest.mark.parametrize(("boots", "counted"), [(False, 90.0), (True, 60.0)], ids=["killed", "power loss"])
def test_what_a_kill_leaves_is_a_minute_behind_at_most(tmp_path: Path, boots: bool, counted: float) -> None:
    """The clock is saved once a minute; in the same boot nothing is lost at all."""
    machine, path, copy = Machine(), tmp_path / "jobs.db", tmp_path / "left.db"
    with machine.spool(path) as spool:
        add(spool)
        done(spool.postpone("a", 0))
        machine.passes(60)
        left(spool)  # saved here
        machine.passes(30)
        left(spool)
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    if boots:
        machine.boots(machine.wall)
    with machine.spool(copy) as spool:
        assert left(spool) == LIFETIME - counted


def test_the_machine_has_such_clocks() -> None:
    clocks = machine_clocks()
    before = clocks.since_boot()
    assert 0 < before <= clocks.since_boot()
    assert machine_clocks().boot == clocks.boot
