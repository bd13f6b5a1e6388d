"""Pages of other origins and rebound names are refused before any route; programs are not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.daemon.browser_guard import BrowserGuard
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig, load_config


def status(headers: Mapping[str, str], method: str = "POST", server: Any = ("127.0.0.1", 8080)) -> int:
    """What the guard answers before an application that has one route."""
    app = FastAPI()
    app.add_api_route("/", lambda: "reached", methods=["GET", "POST"])
    guard = BrowserGuard(app, "127.0.0.1", ["edge.lan"], ["https://app.example.org"])
    sent: list[Any] = []
    scope = {
        "type": "http", "method": method, "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "",
        "scheme": "http", "server": server, "client": None, "http_version": "1.1", "state": {},
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"])


ME = "127.0.0.1:8080"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": ME},
        {"Host": "localhost:8080", "Origin": "http://localhost:8080"},
        {"Host": "LOCALHOST.:8080"},
        {"Host": "[::1]:8080", "Origin": "http://[::1]:8080"},
        {"Host": "192.168.1.5:8080"},
        {"Host": "edge.lan", "Origin": "https://edge.lan"},
        {"Host": ME, "Origin": "https://app.example.org"},
        {"Host": ME, "Sec-Fetch-Site": "same-origin"},
        {},
    ],
)
def test_own_pages_and_programs_pass(headers: dict[str, str]) -> None:
    assert status(headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": ME, "Origin": "http://example.org"},
        {"Host": ME, "Origin": "null"},
        {"Host": ME, "Origin": "http://localhost:8080"},
        {"Host": ME, "Origin": "http://127.0.0.1:3000"},
        {"Host": ME, "Origin": "https://app.example.org.evil.org"},
        {"Host": "evil.org:8080"},
        {"Host": "evil.org:8080", "Origin": "http://evil.org:8080"},
        {"Host": "127.0.0.1.evil.org"},
        {"Host": "localhost.evil.org"},
        {"Host": ""},
        {"Host": ME, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Host": ME, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ],
)
def test_all_else_is_refused(headers: dict[str, str]) -> None:
    assert status(headers) == 403
    assert status(headers, server=("/run/edge.sock", None)) == 200  # no browser opens a Unix socket


def test_a_link_may_be_followed_to_the_page() -> None:
    link = {"Host": ME, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert status({**link, "Sec-Fetch-Dest": "document"}, "GET") == 200
    assert status({**link, "Sec-Fetch-Dest": "iframe"}, "GET") == 403


def test_settings() -> None:
    environment = {"QWEN3VL_EDGE_ALLOWED_ORIGINS": "https://a.org, http://b:80", "QWEN3VL_EDGE_PAGE": "false"}
    found = load_config(None, {"bundle": Path("b")}, environment)
    assert (found.allowed_origins, found.page) == (("https://a.org", "http://b:80"), False)
    for bad in ("*", "example.org", "https://*.example.org", "https://example.org/"):
        with pytest.raises(InputError, match="bad allowed_origins"):
            DaemonConfig(Path("b"), allowed_origins=(bad,))
    with pytest.raises(InputError, match="host"):
        DaemonConfig(Path("b"), allowed_hosts=("http://edge.lan",))
