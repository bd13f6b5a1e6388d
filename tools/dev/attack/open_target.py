"""A server or a daemon to attack, in a process of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from qwen3vl_edge.tools.dev.attack.target import Target
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from qwen3vl_edge.tools.server_process import running_server


@dataclass(frozen=True)
class Models:
    """What server and daemon run: a checkpoint, and a bundle of it."""

    reference: Path
    bundle: Path


@contextmanager
def open_target(side: str, models: Models, settings: Mapping[str, Any]) -> Iterator[Target]:
    """A server, or a daemon in front of one, with these settings; ready."""
    own = settings if side == "server" else {}
    with (
        tempfile.TemporaryDirectory(prefix="qwen3vl-attack-") as folder,
        running_server(threads=1, model=str(models.reference), audit_log=f"{folder}/audit.jsonl", **own) as server,
    ):
        model_hash = httpx.get(f"{server.url}/readyz").json()["model_hash"]
        if side == "server":
            audit = Path(folder) / "audit.jsonl"
            yield Target(side, server.url, server.process.pid, model_hash, server.log, audit)
            return
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        with running_daemon(Path(folder), models.bundle, server.url, f"threads = 1\n{lines}") as daemon:
            yield Target(side, daemon.url, daemon.process.pid, model_hash, daemon.log)
