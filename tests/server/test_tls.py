"""Tokens and certificates over a real port, from both ends: who is let in, and what the other one is told."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qwen3vl_edge.contract.errors import InputError, ServerUnavailableError
from qwen3vl_edge.contract.http.tls import client_context, server_tls
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.answers import RefusedError
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.edge_runtime.client.server_credentials import ServerAccess, access_from_environment
from qwen3vl_edge.edge_runtime.daemon.config import load_config
from qwen3vl_edge.edge_runtime.daemon.main import _upstream
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.edge import EdgeTimings, EncodedPrompt
from qwen3vl_edge.server.http.tokens import add_token
from qwen3vl_edge.tools.server_process import ServerProcess, running_server, spawn
from tests.support.certificates import Pair, make_authority, make_certificate, with_pass_phrase
from tests.support.http_api.client import generate, stream
from tests.support.server_checkpoint import make_case, make_checkpoint, oracle
from tests.support.waiting import until

CASE = make_case("one image", max_new_tokens=6)


@dataclass(frozen=True)
class Guarded:
    """A server that asks for a token and a certificate."""

    server: ServerProcess
    access: ServerAccess
    folder: Path
    ca: Pair
    client: Pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Guarded]:
    ca, clients = make_authority(folder, "authority"), make_authority(folder, "clients")
    server_pair = make_certificate(folder, "server", ca, "IP:127.0.0.1")
    client = make_certificate(folder, "camera", clients)
    token = add_token(folder / "tokens.toml", "camera-3")
    options: dict[str, Any] = {
        "tls_cert": server_pair.cert,
        "tls_key": server_pair.key,
        "tls_client_ca": clients.cert,
        "tokens_file": folder / "tokens.toml",
        "audit_log": folder / "audit.jsonl",
    }
    verify = client_context(ca.cert, client.cert, client.key)
    with running_server(threads=1, model=str(make_checkpoint()), verify=verify, **options) as server:
        yield Guarded(server, ServerAccess(token, ca.cert, client.cert, client.key), folder, ca, client)


def body(streamed: bool = False) -> WireBody:
    return encode_request(replace(CASE.request, stream=streamed))


def test_both_clients_are_answered(guarded: Guarded) -> None:
    url, access = guarded.server.url, guarded.access
    assert url.startswith("https://")
    wanted = oracle().greedy(CASE, 6)
    assert generate(url, body(), access=access)["generated_ids"] == wanted
    assert list(stream(url, body(True), access=access))[-1].final["generated_ids"] == wanted  # type: ignore[index]

    async def streamed() -> Any:
        async with AsyncClient(url, access) as client, aclosing(client.stream(body(True), 60, "key-1")) as events:
            assert await client.ready() is not None
            return [event async for event in events][-1].final

    assert asyncio.run(streamed())["generated_ids"] == wanted


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_wrong_token_is_told_as_one(guarded: Guarded, token: str) -> None:
    """Also where the body is so large that the refusal comes before it has been sent."""
    wide = replace(CASE.request, attention_mask=np.ones(12_000_000, np.int64))
    for request in (CASE.request, wide):
        with pytest.raises(RefusedError, match="token") as refused:
            generate(guarded.server.url, encode_request(request), access=replace(guarded.access, token=token))
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


def test_without_the_right_certificate_nobody_is_let_in(guarded: Guarded) -> None:
    url, access, folder = guarded.server.url, guarded.access, guarded.folder
    stranger = make_certificate(folder, "stranger", guarded.ca)  # signed, but not by those of clients
    for shown in (None, stranger):
        cert, key = (None, None) if shown is None else (shown.cert, shown.key)
        with pytest.raises(ServerUnavailableError):
            generate(url, body(), access=replace(access, cert=cert, key=key))
    other = make_authority(folder, "other")
    with pytest.raises(ServerUnavailableError, match="certificate verify failed"):
        generate(url, body(), access=replace(access, ca=other.cert))
    with pytest.raises(ServerUnavailableError, match=r"certificate verify failed.*localhost"):
        generate(url.replace("127.0.0.1", "localhost"), body(), access=access)
    with pytest.raises(ServerUnavailableError):
        generate(url.replace("https", "http"), body(), access=access)


def test_the_daemons_settings_reach_the_server(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    access = guarded.access
    environment = {
        "QWEN3VL_EDGE_SERVER": guarded.server.url,
        "QWEN3VL_EDGE_SERVER_API_KEY": access.token,
        "QWEN3VL_EDGE_SERVER_CA": str(access.ca),
        "QWEN3VL_EDGE_SERVER_CERT": str(access.cert),
        "QWEN3VL_EDGE_SERVER_KEY": str(access.key),
    }
    assert access_from_environment(environment) == access
    config = load_config(None, {"bundle": guarded.folder}, environment)
    assert access.token not in repr(config)
    request = replace(CASE.request, stream=True, request_id="daemon-1")
    encoded = EncodedPrompt("m", request, (), EdgeTimings(0, ()))
    chat = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}]})

    async def ask() -> Any:
        async with _upstream(config) as upstream:
            events = upstream.stream(encoded, chat, 60, lambda size, by_hash=(): None)
            return [event async for event in events][-1].final

    assert asyncio.run(ask())["generated_ids"] == oracle().greedy(CASE, 6)
    assert "may read it" not in caplog.text
    clear = load_config(None, {"bundle": guarded.folder, "server": "http://192.0.2.1", "server_api_key": "t"}, {})
    assert clear.server_access.sends_token_in_clear(clear.server)
    with pytest.raises(InputError, match="token"):
        load_config(None, {"bundle": guarded.folder, "server_api_key": "a\nb"}, {})


def test_a_hangup_has_the_files_looked_at_again(guarded: Guarded) -> None:
    folder, access = guarded.folder, guarded.access
    (folder / "audit.jsonl").rename(folder / "audit.1")
    added = add_token(folder / "tokens.toml", "second")
    guarded.server.process.send_signal(signal.SIGHUP)

    def begun() -> bool:
        assert generate(guarded.server.url, body(), access=access)
        return (folder / "audit.jsonl").exists()

    until(begun)
    assert generate(guarded.server.url, body(), access=replace(access, token=added))["text"] is not None
    audit = folder / "audit.jsonl"
    until(lambda: '"second"' in audit.read_text(), audit.read_text)  # its line follows its answer
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {line["client"] for line in lines} == {"camera-3", "second"}
    assert {line["bytes_in"] for line in lines} == {body().size}
    assert guarded.server.process.poll() is None
    verify = access.verify()
    assert httpx.get(f"{guarded.server.url}/healthz", verify=verify).status_code == 200
    text = guarded.server.log.read_text() + (folder / "audit.1").read_text()
    assert added not in text
    assert access.token not in text
    assert "Traceback" not in text


def test_a_hangup_renews_the_certificate(guarded: Guarded) -> None:
    url, access, folder, log = guarded.server.url, guarded.access, guarded.folder, guarded.server.log
    address = ("127.0.0.1", httpx.URL(url).port or 0)

    def shown() -> bytes | None:
        with (
            socket.create_connection(address) as plain,
            access.verify().wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            return tls.getpeercert(binary_form=True)

    before = shown()
    renewed = make_certificate(folder, "server", guarded.ca, "IP:127.0.0.1")  # over the files of before
    guarded.server.process.send_signal(signal.SIGHUP)
    until(lambda: shown() != before, log.read_text)
    assert generate(url, body(), access=access)["generated_ids"] == oracle().greedy(CASE, 6)

    renewed.cert.write_text("no certificate")
    after = shown()
    guarded.server.process.send_signal(signal.SIGHUP)
    until(lambda: "the previous certificates stay in use" in log.read_text(), log.read_text)
    assert shown() == after != before
    assert generate(url, body(), access=access)["generated_ids"] == oracle().greedy(CASE, 6)


def test_files_that_cannot_be_used_are_named_in_one_line(guarded: Guarded, tmp_path: Path) -> None:
    ca, client, folder = guarded.ca, guarded.client, guarded.folder
    locked, absent = with_pass_phrase(client.key, tmp_path / "locked.key"), tmp_path / "absent.pem"
    tokens = folder / "tokens.toml"
    for cert, key, authorities, named, field in (
        (client.cert, None, None, "key", "tls_key"),
        (None, client.key, None, "certificate", "tls_cert"),
        (None, None, ca.cert, "certificate", "tls_cert"),
        (absent, client.key, None, "absent.pem", "tls_cert"),
        (client.cert, absent, None, "absent.pem", "tls_key"),
        (client.cert, ca.key, None, "authority.key", "tls_key"),
        (tokens, client.key, None, "tokens.toml", "tls_cert"),
        (client.cert, locked, None, "pass phrase", "tls_key"),
        (client.cert, client.key, tokens, "tokens.toml", "tls_client_ca"),
    ):
        with pytest.raises(InputError, match=named) as refused:
            server_tls(cert, key, authorities)
        assert refused.value.field == field
    for access in (ServerAccess("t", absent), ServerAccess("t", None, absent), ServerAccess("t", None, None, absent)):
        with pytest.raises(InputError):
            generate("https://127.0.0.1:1", body(), access=access)
    started = [
        spawn(tmp_path / "0", model=str(make_checkpoint()), tls_cert=client.cert, tls_key=ca.key),
        spawn(tmp_path / "1", model=str(make_checkpoint()), tokens_file=absent),
    ]
    assert [process.wait(60) for process in started] == [1, 1]
    for index, named in enumerate(("authority.key", "absent.pem")):
        (line,) = (tmp_path / str(index)).read_text().strip().splitlines()
        assert line.startswith("error: ")
        assert named in line
