"""`/v1/jobs` of a daemon: posted, looked at, awaited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess
from tests.support.http_api.chat import image, user
from tests.support.waiting import until

ENDED = ("done", "failed", "expired")
PICTURE = "colour.png"


def chat(samples: Path, text: str = "What colour is the cross?", **more: Any) -> dict[str, Any]:
    """A request's body about a sample picture."""
    return {"messages": [user(image(samples / PICTURE), text)], "max_tokens": 8, **more}


def plain(number: int, tokens: int = 8) -> dict[str, Any]:
    """A request's body without a picture, another for each number."""
    return {"messages": [{"role": "user", "content": f"What is {number}?"}], "max_tokens": tokens}


def post_job(daemon: DaemonProcess, body: dict[str, Any], key: str = "") -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return httpx.post(f"{daemon.url}/v1/jobs", json=body, headers=headers, timeout=60)


def show(daemon: DaemonProcess, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = httpx.get(f"{daemon.url}/v1/jobs/{job_id}", timeout=10).json()
    return job


def ended(daemon: DaemonProcess, job_id: str, within: float = 90) -> dict[str, Any]:
    """The job, once it is done, failed or expired."""
    until(
        lambda: show(daemon, job_id)["status"] in ENDED,
        lambda: f"{show(daemon, job_id)}; {daemon.log.read_text()[-1000:]}",
        within,
    )
    return show(daemon, job_id)
