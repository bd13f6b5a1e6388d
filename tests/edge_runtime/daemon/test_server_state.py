"""What the daemon says of its server before anybody asks it, and jobs that the server does not let in yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx

from qwen3vl_edge.server.http.tokens import add_token
from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.jobs import ENDED, ended, plain, post_job, show
from tests.support.server_checkpoint import make_checkpoint
from tests.support.waiting import until


def state(daemon: DaemonProcess) -> str:
    found: str = httpx.get(f"{daemon.url}/readyz", timeout=10).json()["server"]
    return found


def test_a_job_waits_until_its_token_is_let_in(tmp_path: Path, bundle: Path, reference: Path) -> None:
    served, renewed = tmp_path / "served.toml", tmp_path / "renewed.toml"
    add_token(served, "somebody-else")
    settings = f'spool = "{tmp_path / "spool.db"}"\nserver_api_key = "{add_token(renewed, "camera")}"\n'
    with (
        running_server(model=str(reference), dtype="float32", tokens_file=served) as server,
        running_daemon(tmp_path, bundle, server.url, settings) as daemon,
    ):
        assert state(daemon) == "ready"  # nothing was asked of it yet
        job_id = post_job(daemon, plain(1)).json()["id"]
        until(lambda: "does not let this device in" in state(daemon), daemon.log.read_text)
        assert show(daemon, job_id)["status"] not in ENDED
        assert f"job {job_id} waits" in daemon.log.read_text()
        shutil.move(renewed, served)
        assert ended(daemon, job_id)["status"] == "done"
        assert state(daemon) == "ready"


def test_a_server_of_another_model_is_told(tmp_path: Path, bundle: Path) -> None:
    with (
        running_server(model=str(make_checkpoint())) as server,
        running_daemon(tmp_path, bundle, server.url) as daemon,
    ):
        assert state(daemon) == "ready, but serves another model than the bundle's"
