"""Cameras of a real daemon: named in messages, listed, measured; unknown and dead ones are told apart."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.daemon.config import load_config
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from tests.support.http_api.chat import user
from tests.support.waiting import until


def chat(url: str, kind: str = "video_url") -> dict[str, Any]:
    return {"messages": [user({"type": kind, kind: {"url": url}}, "Which way?")], "max_tokens": 16}


def test_camera_answers_through_the_daemon(tmp_path: Path, bundle: Path, server_url: str, samples: Path) -> None:
    tables = (
        f'[cameras.front]\nsource = "{samples / "motion.mp4"}"\nfps = 4\nseconds = 2\nencode = "always"\n'
        f'[cameras.dead]\nsource = "{tmp_path / "nowhere.mp4"}"\n'
    )
    with running_daemon(tmp_path, bundle, server_url, f'precision = "fp32"\n{tables}') as daemon:
        ask = f"{daemon.url}/v1/chat/completions"

        def answers() -> bool:
            answer = httpx.post(ask, json=chat("camera:front"), timeout=60)
            assert answer.status_code == 200 or answer.headers["retry-after"]
            return answer.status_code == 200

        until(answers)
        answer = httpx.post(ask, json=chat("camera:front"), timeout=60)
        media = answer.json()["qwen3vl_edge"]["media"][0]
        assert (media["kind"], media["camera"]) == ("video", "front")
        assert httpx.post(ask, json=chat("camera:front", "image_url"), timeout=60).status_code == 200
        assert httpx.post(ask, json=chat("camera:none")).status_code == 404
        assert httpx.post(ask, json=chat("camera:dead")).status_code == 503
        assert httpx.post(ask, json=chat("camera:front?seconds=99")).status_code == 400
        front, dead = httpx.get(f"{daemon.url}/v1/cameras").json()["data"]
        assert front["connected"]
        assert front["patches"] <= front["patches_most"] == 4
        assert not dead["connected"]
        assert "cannot be read" in dead["error"]
        assert 'camera_connected{camera="front"} 1.0' in httpx.get(f"{daemon.url}/metrics").text


def test_a_reload_moves_the_cameras(tmp_path: Path, bundle: Path, server_url: str, samples: Path) -> None:
    """The old source is closed before the new one opens; one that cannot be opened is tried until it can."""
    clip = tmp_path / "clip.mp4"
    shutil.copyfile(samples / "motion.mp4", clip)
    late = tmp_path / "late.mp4"
    front = f'[cameras.front]\nsource = "{clip}"\nfps = 4\nseconds = 2\nencode = "always"\n'
    with running_daemon(tmp_path, bundle, server_url, f"max_waiting = 4\n{front}") as daemon:

        def states() -> dict[str, dict[str, Any]]:
            return {state["id"]: state for state in httpx.get(f"{daemon.url}/v1/cameras").json()["data"]}

        def told() -> str:
            return f"{states()} {daemon.log.read_text()[-1000:]}"

        def open_files() -> int:
            folder = Path(f"/proc/{daemon.process.pid}/fd")
            return sum(os.path.realpath(link) == str(clip) for link in folder.iterdir())

        until(lambda: states()["front"]["patches_encoded"] > 0, told)
        assert open_files() == 1
        config = tmp_path / "edge.toml"
        config.write_text(config.read_text().replace("fps = 4", "fps = 8") + f'[cameras.late]\nsource = "{late}"\n')
        most = 0
        daemon.process.send_signal(signal.SIGHUP)
        while "late" not in states():
            most = max(most, open_files())
        until(lambda: bool(states()["late"]["error"]), told)
        until(lambda: states()["front"]["patches_encoded"] > 0, told)
        assert states()["front"]["patches_most"] == 8
        assert max(most, open_files()) == 1
        (tmp_path / "half.mp4").write_bytes(clip.read_bytes())
        (tmp_path / "half.mp4").rename(late)
        until(lambda: bool(states()["late"]["connected"]), told)
        assert states()["late"]["error"] == ""
        assert states()["late"]["reconnects"] >= 1
        ask = f"{daemon.url}/v1/chat/completions"
        until(lambda: httpx.post(ask, json=chat("camera:front"), timeout=60).status_code == 200, told)


@pytest.mark.parametrize(
    ("table", "words"),
    [("fps = 2", "source"), ('source = "x"\nfps = 0', "front.fps"), ('source = "x"\nspeed = 1', "front.speed"),
     ('source = "x"\nencode = "never"', "on-demand"), ('source = "x"\nsize = "big"', "HEIGHTxWIDTH")],
)  # fmt: skip
def test_bad_camera_settings_are_named(tmp_path: Path, table: str, words: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f'bundle = "b"\n[cameras.front]\n{table}\n')
    with pytest.raises(InputError) as refused:
        load_config(path, {}, {})
    assert words in f"{refused.value} {refused.value.field}"
