"""How soon the daemon is ready and how much it holds, with lean and with reference preprocessing.

python -m qwen3vl_edge.tools.dev.bench.startup --bundle BUNDLE --image PICTURE
    --out docs/reports/benchmarks/startup.json

Each round starts a daemon of each kind, one after the other, in alternating order: seconds from the process's start
to 200 from /readyz, resident memory then, and again after 50 pictures through /v1/encode. Medians, because other work
on the machine counts. No server is needed: nothing is asked of it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from qwen3vl_edge.contract.http.listener import listen
from qwen3vl_edge.contract.machine.environment import environment

KINDS = ("lean", "reference")
REQUESTS = 50
START_SECONDS = 180


def measure(bundle: Path, image: Path, preprocess: str) -> dict[str, float]:
    """One daemon, from its start to its end.

    Raises:
        RuntimeError: it did not become ready.
    """
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "qwen3vl_edge", "edge", "--bundle", str(bundle), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--preprocess", preprocess], stdout=log, stderr=log)
        try:
            _wait(url, process, started)
            ready = time.perf_counter() - started
            before = _resident(process.pid)
            uri = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
            parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What is this?"}]
            body = {"messages": [{"role": "user", "content": parts}]}
            for _ in range(REQUESTS):
                httpx.post(f"{url}/v1/encode", json=body, timeout=300).raise_for_status()
            return {"ready_seconds": ready, "ready_bytes": before, "worked_bytes": _resident(process.pid)}
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], started: float) -> None:
    while process.poll() is None and time.perf_counter() - started < START_SECONDS:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    raise RuntimeError("the daemon did not become ready")


def _resident(pid: int) -> int:
    """Bytes in memory (VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for index in range(arguments.rounds):
        for kind in KINDS if index % 2 == 0 else KINDS[::-1]:
            runs[kind].append(measure(arguments.bundle, arguments.image, kind))
    document: dict[str, Any] = {"environment": environment(), "load": os.getloadavg(), "requests": REQUESTS}
    document["rows"] = [
        {"preprocess": kind, "rounds": arguments.rounds}
        | {name: statistics.median(run[name] for run in rows) for name in rows[0]}
        | {"spread_seconds": [min(run["ready_seconds"] for run in rows), max(run["ready_seconds"] for run in rows)]}
        for kind, rows in runs.items()
    ]
    text = json.dumps(document, indent=1) + "\n"
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
