"""A daemon's day compressed into one run, with faults.

python -m qwen3vl_edge.tools.dev.soak.run --bundle BUNDLE --model CHECKPOINT [--requests 20000]
    [--out docs/reports/benchmarks/soak.json]

Exit code 1 if any request was lost, answered otherwise than by the undisturbed daemon, or memory grew.
A full disk needs a file system of its own: root mounts a tmpfs; others go without that fault, and the result says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.tools.dev.soak.faults import Faults, FullDisk, KilledServer, Proxy
from qwen3vl_edge.tools.dev.soak.prompts import SoakPrompt, soak_prompts
from qwen3vl_edge.tools.dev.soak.requests import Asker

WARM_UP = 0.1  # of the requests: caches fill, allocators settle
GROWTH = 1.05
SAMPLE_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--at-a-time", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=60, help="different conversations")
    parser.add_argument("--fault-every", type=float, default=20.0, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", default="", help="more lines for the daemon's edge.toml")
    parser.add_argument("--out", type=Path)
    result = asyncio.run(soak(parser.parse_args()))
    sys.stdout.write(json.dumps(result["rows"], indent=1) + "\n")
    row = result["rows"][0]
    raise SystemExit(0 if not row["lost"] and not row["wrong"] and row["memory_growth"] < GROWTH else 1)


async def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run it; the document that `tools/dev/bench/report/` reads."""
    rng = random.Random(arguments.seed)
    prompts = soak_prompts(arguments.prompts)
    with _scratch() as (folder, disk), contextlib.ExitStack() as stack:
        port = _free_port()
        server = KilledServer(arguments.model, port)
        await asyncio.to_thread(server.start)
        stack.callback(server.close)
        async with Proxy(port) as proxy, _daemon(arguments, folder, proxy.port) as (url, process):
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=arguments.at_a_time)
            async with httpx.AsyncClient(timeout=180, limits=limits) as http:
                expected: dict[str, str] = {}
                asker = Asker(url, http, expected, rng)
                for prompt in prompts:
                    expected[prompt.name] = await asker.quiet(prompt)
                faults = Faults(server, proxy, disk, arguments.fault_every, rng)
                row = await _under_fire(arguments, asker, faults, prompts, process.pid, rng)
                row["metrics"] = _counters((await http.get(f"{url}/metrics")).text)
    document = {"environment": environment(), "rows": [row]}
    if arguments.out is not None:
        atomic.write_bytes(arguments.out, (json.dumps(document, indent=1) + "\n").encode())
    return document


async def _under_fire(
    arguments: argparse.Namespace, asker: Asker, faults: Faults, prompts: list[SoakPrompt], pid: int, rng: random.Random
) -> dict[str, Any]:
    left = iter(range(arguments.requests))
    sent = 0
    samples: list[tuple[int, int]] = []
    started = time.monotonic()

    async def worker() -> None:
        nonlocal sent
        for _ in left:
            await asker.one(rng.choice(prompts))
            sent += 1

    async def watch() -> None:
        while True:
            samples.append((sent, resident_bytes(pid)))
            if len(samples) % 30 == 0:
                sys.stderr.write(f"{sent} sent, {samples[-1][1] / 1e6:.0f} MB, {asdict(faults.count)}\n")
            await asyncio.sleep(SAMPLE_SECONDS)

    beside = [asyncio.create_task(faults.run()), asyncio.create_task(watch())]
    await asyncio.gather(*(worker() for _ in range(arguments.at_a_time)))
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    await asker.collect_jobs()
    tally = asker.tally
    return {
        "requests": sent,
        "at_a_time": arguments.at_a_time,
        "seconds": round(time.monotonic() - started, 1),
        "answered": tally.answered,
        "refused": dict(sorted(tally.refused.items())),
        "told_to_come_back": tally.retries_after_429,
        "left": tally.left,
        "jobs_accepted": len(tally.jobs),
        "wrong": tally.wrong,
        "lost": tally.lost,
        "faults": asdict(faults.count),
        "disk_fault": faults.disk is not None,
        **memory_of(samples, arguments.requests),
    }


def memory_of(samples: list[tuple[int, int]], requests: int) -> dict[str, Any]:
    """Median resident memory in the tenth of the requests after warm-up, and in the last tenth."""

    def median(low: float, high: float) -> int:
        inside = sorted(size for sent, size in samples if low * requests <= sent <= high * requests)
        return inside[len(inside) // 2] if inside else 0

    first, last = median(WARM_UP, 2 * WARM_UP), median(1 - WARM_UP, 1)
    return {
        "memory_after_warm_up": first,
        "memory_at_the_end": last,
        "memory_peak": max(size for _, size in samples),
        "memory_growth": round(last / first, 4) if first else 0.0,
        "memory_samples": samples[:: max(1, len(samples) // 200)],
    }


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.asynccontextmanager
async def _daemon(
    arguments: argparse.Namespace, folder: Path, server_port: int
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    config, log = folder / "edge.toml", Path(tempfile.gettempdir()) / f"soak-{os.getpid()}.log"
    config.write_text(
        f'bundle = "{arguments.bundle.resolve()}"\nserver = "http://127.0.0.1:{server_port}"\nport = 0\nthreads = 1\n'
        f'cache = "{folder / "cache"}"\ncache_mib = 8\nspool = "{folder / "jobs.sqlite"}"\nspool_mib = 16\n'
        f"max_waiting = 15\ndeadline_s = 60\n{arguments.settings}\n"
    )
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3vl_edge", "edge", "--config", str(config)], stdout=stream, stderr=stream
        )
    try:
        yield await asyncio.to_thread(_wait_until_ready, process, log), process
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 90)
        sys.stderr.write(f"the daemon ended with {process.returncode}; its log: {log}\n")


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        if match := re.search(r"listening on (http://[^\s;]+)", log.read_text()):
            return match[1]
        time.sleep(0.1)
    raise SystemExit(f"the daemon did not start: {log.read_text()[-1000:]}")


@contextlib.contextmanager
def _scratch() -> Iterator[tuple[Path, FullDisk | None]]:
    """A folder for cache and spool; on a small file system of its own where this user may mount one."""
    with tempfile.TemporaryDirectory(prefix="qwen3vl-soak-") as name:
        folder = Path(name)
        mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", name]
        mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        try:
            yield folder, FullDisk(folder) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", name], check=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _counters(text: str) -> dict[str, float]:
    """The daemon's own totals."""
    totals = re.findall(r"^(qwen3vl_edge_device_\w+(?:{[^}]*})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in totals if "_bucket" not in name and "_created" not in name}


if __name__ == "__main__":
    main()
