"""A chat through real processes: its picture travels once, and again only where the server lost it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_medium, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.ask import build_messages
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.daemon.upstreams.qwen3vl_server import Qwen3VLServer
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.chat import ask
from tests.support.http_api.port import free_port


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, bundle: Path, port: int) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    with running_daemon(folder, bundle, f"http://127.0.0.1:{port}", 'precision = "fp32"\n') as running:
        yield running


def test_a_chat_over_restarts(daemon: DaemonProcess, reference: Path, samples: Path, port: int) -> None:
    picture, question = samples / "colour.png", "What colour is the cross?"
    with running_server(model=str(reference), port=port) as server:
        assert httpx.get(f"{server.url}/readyz").json()["holds_embeddings"] is True
        text, first = ask(daemon.url, picture, question)
        again, second = ask(daemon.url, picture, question)
        assert [item["media"][0]["sent"] for item in (first, second)] == ["tensors", "hash"]
        assert again == text
        assert second["sent_bytes"] < first["sent_bytes"] / 5
        metrics = httpx.get(f"{server.url}/metrics").text
        assert "qwen3vl_edge_embedding_store_hits_total 1.0" in metrics
        assert "qwen3vl_edge_device_media_by_hash_total 1.0" in httpx.get(f"{daemon.url}/metrics").text
    with running_server(model=str(reference), port=port) as server:  # it remembers nothing
        again, third = ask(daemon.url, picture, question)
        assert (again, third["media"][0]["sent"]) == (text, "tensors")
        assert "qwen3vl_edge_embedding_store_misses_total 1.0" in httpx.get(f"{server.url}/metrics").text
        assert ask(daemon.url, picture, question)[1]["media"][0]["sent"] == "hash"
    with running_server(model=str(reference), port=port, hold_embeddings_mib=0) as server:  # holds nothing at all
        for _ in range(2):
            again, found = ask(daemon.url, picture, question)
            assert (again, found["media"][0]["sent"]) == (text, "tensors")
        assert "qwen3vl_edge_embedding_store_bytes 0.0" in httpx.get(f"{server.url}/metrics").text


def test_the_route_and_its_refusals(edge: Edge, server_url: str, samples: Path) -> None:
    messages = build_messages("What colour?", [str(samples / "colour.png")], [])
    request = edge.encode(messages, Sampling(max_new_tokens=8)).request
    model = str(request.model_hash)
    name = embedding_hash(request.media[0], model)
    medium = replace(request.media[0], hash=name)
    request = replace(request, media=(medium,))
    url, headers = f"{server_url}/v1/embeddings/{name}", {"Content-Type": CONTENT_TYPE}

    def generate(body: bytes) -> httpx.Response:
        return httpx.post(f"{server_url}/v1/generate", content=body, headers=headers, timeout=60)

    def put(body: bytes, to: str = url) -> httpx.Response:
        return httpx.put(to, content=body, headers=headers)

    assert httpx.head(url).status_code == 404
    refused = generate(bytes(encode_request(request, {name})))
    assert refused.status_code == 404
    error = refused.json()["error"]
    assert (error["code"], error["param"], error["missing"]) == ("embeddings_not_held", "media.0", [name])
    whole = bytes(encode_medium(medium, model))
    changed = replace(medium, embeds=medium.embeds + np.float32(1))
    assert put(bytes(encode_medium(changed, model))).json()["error"]["param"] == "media.0.hash"
    assert put(bytes(encode_medium(medium, "0" * 64))).status_code == 409
    assert put(whole, f"{server_url}/v1/embeddings/{'0' * 64}").status_code == 400
    assert put(whole, f"{server_url}/v1/embeddings/short").status_code == 400
    wrong = generate(bytes(encode_request(replace(request, media=(changed,)))))
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "media.0.hash")
    assert httpx.get(url).status_code == 404
    assert [put(whole).status_code for _ in range(2)] == [201, 200]
    assert httpx.head(url).status_code == 200
    assert httpx.get(url).json()["bytes"] == medium.nbytes
    by_hash = generate(bytes(encode_request(request, {name}))).json()
    by_value = generate(bytes(encode_request(replace(request, media=(replace(medium, hash=None),))))).json()
    assert by_hash["generated_ids"] == by_value["generated_ids"]


class CutOnce:
    """TCP to the server: one connection is cut within its answer, and the next one comes after a pause."""

    def __init__(self, port: int, pause_s: float) -> None:
        self._port, self._pause_s = port, pause_s
        self.cut_after: int | None = None
        self.cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cuts:
            await asyncio.sleep(self._pause_s)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        up = asyncio.create_task(self._pass(reader, far_writer, answer=False))
        await self._pass(far_reader, writer, answer=True)
        up.cancel()
        for end in (writer, far_writer):
            end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(64):
                writer.write(chunk)
                await writer.drain()
                if answer and self.cut_after is not None:
                    self.cut_after -= len(chunk)
                    if self.cut_after <= 0:
                        self.cut_after, self.cuts = None, self.cuts + 1
                        return


def test_what_is_forgotten_within_an_answer_is_sent_in_full(edge: Edge, reference: Path, samples: Path) -> None:
    """As a server does that is killed under an answer: the next try's names mean nothing to it."""
    encoded = edge.encode(build_messages("How many?", [str(samples / "count.png")], []), stream=True)
    chat = ChatRequest.model_validate({"messages": [{"role": "user", "content": "How many?"}]})
    sent: list[tuple[int, int]] = []

    async def ask(upstream: Qwen3VLServer) -> str:
        again = replace(encoded, request=replace(encoded.request, request_id=uuid.uuid4().hex))
        pieces = [
            event.text
            async for event in upstream.stream(again, chat, 60, lambda size, names=(): sent.append((size, len(names))))
            if event.final is None
        ]
        return "".join(pieces)

    async def scenario(port: int) -> None:
        proxy = CutOnce(port, pause_s=4.5)
        async with (
            await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as listener,
            Qwen3VLServer(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") as upstream,
        ):
            whole = await ask(upstream)
            proxy.cut_after = 400  # headers, and the first token or two
            assert await ask(upstream) == whole
            assert proxy.cuts == 1
            assert [names for _, names in sent] == [0, 1, 0]

    with running_server(model=str(reference), dtype="float32", hold_embeddings_s=3.0) as server:
        asyncio.run(scenario(int(server.url.rsplit(":", 1)[1])))
