"""A hub id through the real huggingface_hub, against a hub on this machine: what is fetched, and what is not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.tools.dev.random_checkpoint import encoder_checkpoint
from tests.support.encoders.export_models import sharded_checkpoint
from tests.support.paths import ROOT

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """The routes of the hub's API that a download uses, over one folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.folder = folder
        self.sent: list[str] = []


class Routes(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        files = sorted(self.server.folder.iterdir())
        if path.startswith("/api/models/tiny/model/tree/"):
            rows = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self.answer(json.dumps(rows).encode(), {})
            return
        if path.startswith("/api/models/tiny/model"):
            names = [{"rfilename": file.name} for file in files]
            self.answer(json.dumps({"id": "tiny/model", "sha": COMMIT, "siblings": names}).encode(), {})
            return
        file = self.server.folder / path.rsplit("/", 1)[-1]
        if not path.startswith(f"/tiny/model/resolve/{COMMIT}/") or not file.is_file():
            self.send_error(404)
            return
        body = file.read_bytes()
        if self.command == "GET":
            self.server.sent.append(file.name)
        self.answer(body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["dense", "moe"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    with Hub(sharded_checkpoint(tmp_path / "model", request.param).path) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


def run(hub: Hub, command: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **settings}, check=False, timeout=300
    )


def export(hub: Hub, model: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    options = ["--buckets", "64x96", "--out", str(tmp_path / "b")]
    return run(hub, [sys.executable, "-m", "qwen3vl_edge", "export", model, *options], tmp_path)


def test_export_leaves_the_language_shards_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    done = export(hub, "tiny/model", tmp_path)
    assert done.returncode == 0, done.stderr
    visual = {shard.name for shard in Checkpoint(hub.folder, "m").shards}
    shards = {name for name in hub.sent if name.endswith(".safetensors")}
    assert shards == visual
    assert visual < {file.name for file in hub.folder.glob("*.safetensors")}
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.model.id == "tiny/model"
    assert manifest.model.model_hash == Checkpoint(hub.folder, "m").model_hash


def test_of_a_single_file_beside_a_stale_index_no_shard_is_fetched(tmp_path: Path) -> None:
    folder = encoder_checkpoint(tmp_path / "model", depth=1, deepstack_visual_indexes=[0]).path
    stale = {"weight_map": {"model.visual.pos_embed.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"left by an earlier save")
    opens = (
        "from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint as o; print(o('tiny/model').model_hash)"
    )
    with Hub(folder) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        done = run(serving, [sys.executable, "-c", opens], tmp_path)
        serving.shutdown()
    assert done.stdout.strip() == Checkpoint(folder, "m").model_hash, done.stderr
    assert [name for name in serving.sent if name.endswith(".safetensors")] == ["model.safetensors"]


def test_an_unknown_hub_id_is_one_line(hub: Hub, tmp_path: Path) -> None:
    done = export(hub, "tiny/other", tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "tiny/other is neither a local folder nor a hub model" in done.stderr
    assert not (tmp_path / "b").exists()
