"""The server's app without a port, around a real engine; and a request whose medium it may hold by its hash."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from qwen3vl_edge.contract.wire.codec import encode_medium, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.server.app import create_app
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
from qwen3vl_edge.server.options import ServerOptions, load_options
from qwen3vl_edge.server.readiness import Readiness
from qwen3vl_edge.server.state import open_state
from tests.support.http_api.generate import BINARY
from tests.support.server_checkpoint import make_case, oracle

CASE = make_case("one image", max_new_tokens=4)
HASHED = replace(CASE.request.media[0], hash=embedding_hash(CASE.request.media[0], str(CASE.request.model_hash)))
BY_HASH = bytes(encode_request(replace(CASE.request, media=(HASHED,)), {str(HASHED.hash)}))
PUT = bytes(encode_medium(HASHED, str(CASE.request.model_hash)))
URL = f"/v1/embeddings/{HASHED.hash}"


@contextmanager
def reference_engine() -> Iterator[TransformersEngine]:
    """An engine of the random checkpoint on the CPU."""
    engine = TransformersEngine(load_language_model(oracle().checkpoint, ServerOptions(model="", device_map="cpu")))
    try:
        yield engine
    finally:
        engine.close()


class App:
    """The app without a port; each call is a request of its own."""

    def __init__(self, engine: TransformersEngine, **options: Any) -> None:
        readiness = Readiness()
        readiness.set(engine)
        self.state = open_state(readiness, load_options(None, {"model": "m", **options}, {}))
        self.app = create_app(self.state)

    def __call__(
        self, method: str, path: str, token: str = "", address: str = "192.0.2.1", **more: Any
    ) -> httpx.Response:
        headers = {**BINARY, **({"Authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, headers=headers, **more)

        return asyncio.run(send())
