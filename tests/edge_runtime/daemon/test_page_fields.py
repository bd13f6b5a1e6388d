"""Every field that the page's scripts read is one that the API sends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.contract.formats.picture_files import client_media_types
from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from tests.support.http_api.chat import image, post_chat, user
from tests.support.paths import ROOT
from tests.support.waiting import until

PAGE = ROOT / "edge_runtime" / "daemon" / "page"


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, server_url: str, samples: Path
) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("page")
    settings = f'cache = "{folder / "cache"}"\n[cameras.front]\nsource = "{samples / "motion.mp4"}"\n'
    with running_daemon(folder, bundle, server_url, settings) as running:
        yield running


def chunks(daemon: DaemonProcess, samples: Path) -> list[dict[str, Any]]:
    """What a streamed answer about a picture sends, usage included."""
    body = {"messages": [user(image(samples / "colour.png"), "What colour?")], "max_tokens": 4, "stream": True}
    body["stream_options"] = {"include_usage": True}
    text = post_chat(daemon.url, body).text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def read_of(script: str, variable: str) -> set[str]:
    """The fields of a variable that a script reads, by their names or by taking it apart."""
    source = (PAGE / script).read_text()
    found = set(re.findall(rf"(?<![\w.]){variable}\??\.(\w+)\b(?!\()", source))
    for taken in re.findall(rf"\{{([^{{}}]+)\}} = {variable}\b", source):
        found |= {name.split(":")[0].strip() for name in taken.split(",")}
    return found


def test_the_file_picker_names_what_the_daemon_reads(daemon: DaemonProcess) -> None:
    page = httpx.get(f"{daemon.url}/").text
    assert f'accept="{",".join(client_media_types())},video/*"' in page
    assert "image/*" not in page


def test_the_scripts_read_what_the_api_sends(daemon: DaemonProcess, samples: Path) -> None:
    for _ in range(2):  # the second is from the cache, which its evidence says
        streamed = chunks(daemon, samples)
    evidence = next(chunk["qwen3vl_edge"] for chunk in streamed if "qwen3vl_edge" in chunk)
    usage = next(chunk["usage"] for chunk in streamed if chunk.get("usage"))
    rows = httpx.get(f"{daemon.url}/v1/requests/recent").json()["data"]
    refusal = httpx.post(f"{daemon.url}/v1/chat/completions", json={}).json()["error"]
    assert evidence["media"][0]["cached"] is True
    sent = {
        ("api.js", "chunk"): {name for chunk in streamed for name in chunk} | {"error"},
        ("api.js", "choice"): {name for chunk in streamed for choice in chunk["choices"] for name in choice},
        ("api.js", "error"): {*refusal, "name"},
        ("camera.js", "camera"): set(httpx.get(f"{daemon.url}/v1/cameras").json()["data"][0]),
        ("costs.js", "spent"): set(evidence["seconds"]),
        ("costs.js", "usage"): set(usage),
        ("page.js", "evidence"): set(evidence),
        ("page.js", "usage"): set(usage),
        ("recent.js", "request"): set(rows[0]),
        ("recent.js", "item"): set(rows[0]["media"][0]),
        ("seen.js", "item"): {*evidence["media"][0], "orientation", "frame"},  # of pictures that have one
        ("status.js", "state"): set(httpx.get(f"{daemon.url}/readyz").json()),
        ("status.js", "model"): set(httpx.get(f"{daemon.url}/v1/models").json()["data"][0]),
    }
    for (script, variable), names in sent.items():
        read = read_of(script, variable)
        assert read, f"{script} reads nothing of {variable}: the table is out of date"
        assert read <= names, f"{script} reads {variable}.{sorted(read - names)}, which the API does not send"
    model = httpx.get(f"{daemon.url}/v1/models").json()["data"][0]
    assert {"patch_size", "merge_size"} <= set(model)  # taken apart as an argument in seen.js
    times = set(re.findall(r'time\("(\w+)"\)', (PAGE / "recent.js").read_text()))
    assert times <= set(rows[0]["seconds"])


def test_an_offered_camera_answers(daemon: DaemonProcess) -> None:
    """The address that the page makes of a name that it read."""
    script = (PAGE / "camera.js").read_text()
    assert "cameras.map((camera) => camera.id)" in script
    assert "url: `camera:${name}`" in (PAGE / "attachments.js").read_text()
    (camera,) = httpx.get(f"{daemon.url}/v1/cameras").json()["data"]
    part = {"type": "video_url", "video_url": {"url": f"camera:{camera['id']}"}}
    body = {"messages": [user(part, "Which way?")], "max_tokens": 4}
    until(lambda: post_chat(daemon.url, body).status_code == 200, daemon.log.read_text)
