"""A process that keeps jobs and prints the id of each once it is told that it is kept."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

from qwen3vl_edge.edge_runtime.daemon.jobs.job import NewJob
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool


async def write(spool: Spool) -> None:
    """Until killed: one job after another, some of them answered at once."""
    number = 0
    while True:
        number += 1
        job = await spool.add(
            NewJob(uuid.uuid4().hex, f"key {number}", "hash", {"number": number}, os.urandom(20_000), 1000.0)
        )
        print(f"kept {job.id}", flush=True)
        if number % 3 == 0:
            claimed = await spool.claim()
            assert claimed is not None
            await spool.finish(claimed.job.id, answer={"of": claimed.job.id})
            print(f"done {claimed.job.id}", flush=True)


if __name__ == "__main__":
    asyncio.run(write(Spool(Path(sys.argv[1]), 2**30, 10**6)))
