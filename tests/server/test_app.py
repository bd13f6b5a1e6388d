"""The HTTP edge where the model fails, is not there yet, or the body does not come; and what importing costs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_request
from qwen3vl_edge.server.app import create_app
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.readiness import Readiness
from qwen3vl_edge.server.state import open_state
from tests.support.paths import ROOT
from tests.support.server_checkpoint import make_case, oracle

OPTIONS = ServerOptions(model="", device_map="cpu", body_timeout_s=0.2)
SECRET = "weights under /secret/path"


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(load_language_model(oracle().checkpoint, OPTIONS))
    yield engine
    engine.close()


def post(engine: TransformersEngine | None, content: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    readiness = Readiness()
    if engine is not None:
        readiness.set(engine)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(open_state(readiness, OPTIONS)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/generate", content=content, headers=headers or {"Content-Type": CONTENT_TYPE})

    return asyncio.run(send())


def body(stream: bool = False) -> bytes:
    return bytes(encode_request(replace(make_case("one image").request, stream=stream)))


def break_model(engine: TransformersEngine, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(engine.loaded.model, "forward", fail)


def test_fault_of_the_server_is_a_bare_500(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    break_model(engine, RuntimeError(SECRET), monkeypatch)
    response = post(engine, body())
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


def test_fault_within_a_stream_is_an_error_event(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_model(engine, RuntimeError(SECRET), monkeypatch)
    response = post(engine, body(stream=True))
    first, last = (line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: "))
    assert json.loads(first)["error"]["code"] == "internal_error"
    assert last == "[DONE]"
    assert "secret" not in response.text
    assert SECRET in caplog.text  # the operator does see it


def test_no_memory_is_a_503_that_says_so(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    break_model(engine, torch.OutOfMemoryError("CUDA out of memory"), monkeypatch)
    response = post(engine, body())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "out_of_memory"


def test_nothing_is_generated_before_the_model_is_loaded() -> None:
    response = post(None, body())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "server_unavailable"
    assert int(response.headers["retry-after"]) > 0


def test_body_that_comes_too_slowly_is_408(engine: TransformersEngine) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"\x00" * 8
        await asyncio.sleep(1)
        yield b"\x00" * 8

    response = post(engine, slow(), {"Content-Type": CONTENT_TYPE, "Transfer-Encoding": "chunked"})
    assert response.status_code == 408
    assert response.json()["error"]["param"] == "body"


def test_importing_the_server_loads_neither_torch_nor_a_web_framework() -> None:
    heavy = {"torch", "transformers", "fastapi", "uvicorn"}
    code = f"import sys, qwen3vl_edge.server.main, qwen3vl_edge.server.options; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
