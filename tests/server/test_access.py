"""Who is let in, how often, under which name, and what is written of it: the real app with a real engine."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from qwen3vl_edge.contract.http.sender import sender_of
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.http.access import warn_of_open_doors
from qwen3vl_edge.server.http.audit import AuditLog
from qwen3vl_edge.server.http.rate_limit import MAX_SENDERS, RateLimit
from qwen3vl_edge.server.http.tokens import TokenFile, add_token, read_tokens
from qwen3vl_edge.server.options import ServerOptions, load_options
from tests.support.http_api.app import BINARY, BY_HASH, CASE, HASHED, PUT, URL, App, reference_engine
from tests.support.run_cli import run_here
from tests.support.server_checkpoint import oracle


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with reference_engine() as engine:
        yield engine


def code_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return str(error["code"])


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_only_those_with_a_token_are_let_in(engine: TransformersEngine, tokens: Path) -> None:
    token = add_token(tokens, "camera-3")
    app = App(engine, tokens_file=tokens)
    body = bytes(encode_request(CASE.request))
    for path in ("/healthz", "/readyz", "/metrics"):
        assert app("GET", path).status_code == 200
    for path in ("/v1/models", "/openapi.json", URL, "/nothing", "/healthz/", "//healthz"):
        refused = app("GET", path)
        assert (refused.status_code, code_of(refused)) == (401, "invalid_api_key"), path
        assert refused.headers["www-authenticate"] == "Bearer"
    wrong = [f"Bearer {token}x", f"Bearer {token[:-1]}", f"Basic {token}", token, "Bearer", "Bearer ", "Bearer é" * 9]
    for value in wrong:
        refused = app("POST", "/v1/generate", headers={"Authorization": value.encode("latin-1")}, content=body)
        assert refused.status_code == 401, value
        assert "invalid_token" in refused.headers["www-authenticate"]
        assert token not in refused.text
    answer = app("POST", "/v1/generate", token, content=body)
    assert answer.json()["generated_ids"] == oracle().greedy(CASE, 4)
    assert app("GET", "/v1/models", headers={"Authorization": f"bearer  {token}"}).status_code == 200
    counted = app("GET", "/metrics").text
    assert 'endpoint="/v1/generate",status="401"' in counted
    closed = App(engine, tokens_file=tokens, metrics_token=True)
    assert closed("GET", "/metrics").status_code == 401
    assert closed("GET", "/metrics", token).status_code == 200


def test_a_refused_body_is_not_taken_for_a_request(engine: TransformersEngine, tokens: Path) -> None:
    """The sender can end its sending, reads why, and nothing of it was kept."""
    add_token(tokens, "a")
    app = App(engine, tokens_file=tokens, max_body_mib=1)
    assert app("PUT", URL, content=PUT).status_code == 401
    assert app("POST", "/v1/generate", content=bytes(3 * 2**20)).status_code == 401
    assert re.search(r"received_bytes_total 0\.0", app("GET", "/metrics").text)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, zstd"])
def test_nothing_but_zstd_is_decompressed(engine: TransformersEngine, encoding: str) -> None:
    app = App(engine)
    for method, path in (("POST", "/v1/generate"), ("PUT", URL)):
        refused = app(method, path, content=PUT, headers={"Content-Encoding": encoding})
        assert (refused.status_code, code_of(refused)) == (415, "unsupported_encoding")
        assert encoding in refused.text
        claimed = app(method, path, content=b"", headers={"Content-Length": "9" * 5000})
        assert (claimed.status_code, code_of(claimed)) == (413, "limit_exceeded")


def test_one_client_cannot_tell_what_another_holds(engine: TransformersEngine, tokens: Path, tmp_path: Path) -> None:
    first, second = add_token(tokens, "first"), add_token(tokens, "second")
    app = App(engine, tokens_file=tokens, hold_folder=tmp_path / "held")
    assert app("PUT", URL, first, content=PUT).status_code == 201
    assert app("HEAD", URL, first).status_code == 200
    assert app("POST", "/v1/generate", first, content=BY_HASH).status_code == 200
    assert app("HEAD", URL, second).status_code == 404
    assert code_of(app("POST", "/v1/generate", second, content=BY_HASH)) == "embeddings_not_held"
    assert app("PUT", URL, second, content=PUT).status_code == 201, "not even that another one brought it"
    key = {"Idempotency-Key": "same", **BINARY}
    for token in (first, second):
        answers = app("POST", "/v1/generate", token, headers=key, content=BY_HASH)
        assert answers.status_code == 200
    assert 'outcome="replayed"' not in app("GET", "/metrics").text


def test_tokens_change_while_the_server_runs(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    old = add_token(tokens, "a")
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    known = TokenFile(tokens, lambda: now[0])
    tokens.write_text("# who may\n" + tokens.read_text())
    tokens.chmod(0o640)
    new = add_token(tokens, "a", datetime(2100, 1, 1, tzinfo=timezone.utc))
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o640
    assert tokens.read_text().startswith("# who may\n")
    assert known.find(new.encode()) is None, "it looks once a second"
    now[0] = 1
    assert {entry.name for token in (old, new) if (entry := known.find(token.encode())) is not None} == {"a"}
    for broken in ("[[client]]\nname = 3\n", "]", "[[client]]\nname = 'a'\nsha256 = '12'\n", "[client]\n"):
        tokens.write_text(broken)
        known.check_soon()
        assert known.find(old.encode()) is not None
        assert str(tokens) in caplog.messages[-1]
        with pytest.raises(InputError, match="tokens"):
            read_tokens(tokens)
        with pytest.raises(InputError):
            add_token(tokens, "b")
        assert tokens.read_text() == broken
    os.unlink(tokens)
    known.check_soon()
    assert known.find(old.encode()) is not None
    tokens.write_text("")
    known.check_soon()
    assert known.find(old.encode()) is None
    with pytest.raises(InputError, match=r"absent.toml"):
        TokenFile(tokens.parent / "absent.toml")


def test_an_expired_token_and_a_clients_own_limits(engine: TransformersEngine, tokens: Path) -> None:
    past, own = add_token(tokens, "past", datetime(2020, 1, 1, tzinfo=timezone.utc)), add_token(tokens, "own")
    tokens.write_text(tokens.read_text() + "requests_per_minute = 1\n")
    alone = add_token(tokens, "alone")
    tokens.write_text(tokens.read_text() + "max_concurrent = 1\n")
    app = App(engine, tokens_file=tokens, rate_burst=2)
    refused = app("GET", "/v1/models", past)
    assert refused.status_code == 401
    assert "expired" in refused.text
    assert [app("GET", "/v1/models", own).status_code for _ in range(3)] == [200, 200, 429]
    assert app("DELETE", "/v1/generate", own).status_code == 400, "let in, to be told that it has no key"
    guard, entry = app.state.guard, read_tokens(tokens)[2]
    guard.enter({"method": "POST", "headers": []}, entry)
    refused = app("GET", "/v1/models", alone)
    assert (refused.status_code, code_of(refused)) == (429, "too_many_concurrent")
    assert app("DELETE", "/v1/generate", alone).status_code == 400
    guard.leave(entry)
    assert app("GET", "/v1/models", alone).status_code == 200
    assert not guard._under_way


def test_too_many_requests_are_told_when_to_come_back(engine: TransformersEngine, tokens: Path) -> None:
    token = add_token(tokens, "a")
    app = App(engine, tokens_file=tokens, rate_per_minute=6, rate_burst=3)
    assert [app("GET", "/v1/models", token).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = app("GET", "/v1/models", token, "192.0.2.9")
    assert (refused.status_code, code_of(refused)) == (429, "rate_limited"), "a client is its name, wherever it is"
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert [app("GET", "/v1/models", "guess").status_code for _ in range(4)] == [401, 401, 401, 429]
    assert app("GET", "/v1/models", "guess", "192.0.2.2").status_code == 401
    assert [app("GET", "/healthz").status_code for _ in range(9)] == [200] * 9


def test_a_bucket_refills_and_memory_is_bounded() -> None:
    now = [0.0]
    limit = RateLimit(60, 2, lambda: now[0])
    assert [limit.take("a") for _ in range(3)] == [0, 0, 1]
    now[0] = 0.5
    assert limit.take("a") == pytest.approx(0.5)
    now[0] = 1
    assert (limit.take("a"), limit.take("a")) == (0, 1)
    now[0] = 1000
    assert [limit.take("a") for _ in range(3)] == [0, 0, 1]
    assert [limit.take("b", 0) for _ in range(9)] == [0] * 9
    for number in range(MAX_SENDERS + 10):
        limit.take(str(number))
    assert len(limit) == MAX_SENDERS
    assert sender_of("2001:db8::1") == sender_of("2001:db8::ffff:1%eth0") != sender_of("2001:db8:0:1::1")
    assert sender_of("192.0.2.1") != sender_of("192.0.2.2")
    assert len(sender_of("x" * 999)) == 64


def test_every_answer_carries_an_id(engine: TransformersEngine, tokens: Path) -> None:
    app = App(engine, tokens_file=tokens) if add_token(tokens, "a") else None
    assert app is not None
    own = App(engine)
    request = replace(CASE.request, request_id="", sampling=Sampling(max_new_tokens=1))
    body = bytes(encode_request(request))
    answer = own("POST", "/v1/generate", content=body, headers={"X-Request-Id": "trace:1/a-b.c_d"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "trace:1/a-b.c_d"
    for found in (app("GET", "/v1/models"), own("GET", "/nothing"), own("PATCH", "/v1/models"), own("GET", "/readyz")):
        assert re.fullmatch("[0-9a-f]{32}", found.headers["x-request-id"])
    for bad in ("x" * 129, "a b", 'a"', "\x7f", "é"):
        found = own("GET", "/healthz", headers={"X-Request-Id": bad.encode("latin-1")})
        assert re.fullmatch("[0-9a-f]{32}", found.headers["x-request-id"])


def test_an_unforeseen_fault_carries_it_too(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret path")

    app = App(engine, audit_log=tmp_path / "audit.jsonl")
    monkeypatch.setattr(engine, "check_room", fail)
    answer = app("POST", "/v1/generate", content=b"", headers={"X-Request-Id": "find-me"})
    assert (answer.status_code, code_of(answer)) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "find-me"
    assert "find-me" in answer.text
    assert "secret" not in answer.text
    assert any("find-me" in message for message in caplog.messages)
    line = json.loads((tmp_path / "audit.jsonl").read_text())
    assert (line["status"], line["error"]) == (500, "internal_error")


def test_the_audit_log_tells_who_and_what_but_no_content(
    engine: TransformersEngine, tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    token = add_token(tokens, "camera-3")
    app = App(engine, tokens_file=tokens, audit_log=path)
    body = bytes(encode_request(CASE.request))
    answer = app("POST", "/v1/generate?token=hidden", token, content=body, headers={"X-Request-Id": "r1"}).json()
    streamed = bytes(encode_request(replace(CASE.request, stream=True)))
    app("POST", "/v1/generate", token, content=streamed)
    app("POST", "/v1/generate", token, content=body[:-1])
    app("POST", "/v1/generate", "wrong-token", content=body)
    app("GET", "/" + "p" * 999, token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    first, second, broken, refused, lost = map(json.loads, text.splitlines())
    assert first["time"].endswith("Z")
    assert first["seconds"] > 0
    expected = {
        "request_id": "r1",
        "client": "camera-3",
        "address": "192.0.2.1",
        "method": "POST",
        "path": "/v1/generate",
        "status": 200,
        "bytes_in": len(body),
        "prompt_tokens": CASE.request.input_ids.size,
        "visual_tokens": 6,
        "generated_tokens": len(answer["generated_ids"]),
        "error": None,
    }
    assert {name: first[name] for name in expected} == expected
    assert set(first) == {*expected, "time", "seconds"}
    assert second["generated_tokens"] == first["generated_tokens"]
    assert (broken["status"], broken["error"], broken["generated_tokens"]) == (400, "bad_wire_format", None)
    assert (refused["status"], refused["error"], refused["client"]) == (401, "invalid_api_key", "")
    assert (lost["status"], lost["error"], len(lost["path"])) == (404, "not_found", 200)
    content = [answer["text"], token, "wrong-token", "hidden", "What is in the picture", str(HASHED.hash)]
    content += [np.format_float_positional(value)[:7] for value in HASHED.embeds[0][:4]]
    content += [", ".join(map(str, ids[:3])) for ids in (CASE.request.input_ids.tolist(), answer["generated_ids"])]
    for secret in content:
        assert secret
        assert secret not in text
        assert secret not in caplog.text


def test_the_audit_log_follows_logrotate_and_a_full_disk_stops_nobody(
    engine: TransformersEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    app = App(engine, audit_log=path)
    app("GET", "/healthz")
    app("GET", "/healthz")
    path.rename(tmp_path / "audit.1")
    app("GET", "/healthz")
    assert len((tmp_path / "audit.1").read_text().splitlines()) == 2
    assert len(path.read_text().splitlines()) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    app.state.guard.on_hangup()
    app("GET", "/healthz")
    assert len(path.read_text().splitlines()) == 1
    full = App(engine, audit_log=Path("/dev/full"))
    assert full("GET", "/healthz").status_code == 200
    assert "/dev/full cannot be written (No space left on device)" in caplog.text
    with pytest.raises(InputError, match=r"absent.*cannot be written"):
        App(engine, audit_log=tmp_path / "absent" / "audit.jsonl")


def test_lines_are_written_again_once_the_audit_logs_folder_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AuditLog(folder / "audit.jsonl")
    log.write({"number": 1})
    folder.rename(tmp_path / "moved")
    for number in (2, 3):
        log.write({"number": number})
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"audit log {folder}/audit.jsonl cannot be written"
    ] * 2
    folder.mkdir()
    for number in (4, 5):
        log.write({"number": number})
    assert (tmp_path / "moved" / "audit.jsonl").read_text() == '{"number": 1}\n'
    assert (folder / "audit.jsonl").read_text() == '{"number": 4}\n{"number": 5}\n'
    assert len(caplog.messages) == 2


def test_the_command_makes_a_token(tokens: Path) -> None:
    made = run_here("server-token", "camera-3", "--file", str(tokens), "--days", "30")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert len(token) == 43
    assert token not in tokens.read_text()
    entry = TokenFile(tokens).find(token.encode())
    assert entry is not None
    assert entry.name == "camera-3"
    assert entry.expires is not None
    refused = run_here("server-token", "a b", "--file", str(tokens))
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "NAME" in refused.stderr or "name" in refused.stderr


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"host": "127.0.0.1"}, 0),
        ({"host": "::1"}, 0),
        ({"host": "localhost"}, 0),
        ({"host": "0.0.0.0"}, 2),
        ({"host": "server.example"}, 2),
        ({"host": "0.0.0.0", "tokens_file": Path("t")}, 1),
        ({"host": "::", "tls_cert": Path("c"), "tls_key": Path("k")}, 1),
        ({"host": "::", "tls_cert": Path("c"), "tls_key": Path("k"), "tls_client_ca": Path("ca")}, 0),
    ],
)
def test_open_doors_are_told_at_the_start(
    options: dict[str, Any], warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_open_doors(ServerOptions(model="m", **options))
    assert len(caplog.records) == warned


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"metrics_token": True}, "tokens_file"),
        ({"hold_folder": "x", "hold_embeddings_mib": 0}, "hold_embeddings_mib"),
        ({"rate_per_minute": -1}, "rate_per_minute"),
        ({"rate_burst": 0}, "rate_burst"),
        ({"hold_disk_mib": 0}, "hold_disk_mib"),
        ({"max_connections": 0}, "max_connections"),
        ({"trusted_proxies": ("proxy.example",)}, "trusted_proxies"),
    ],
)
def test_settings_that_do_not_fit_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        load_options(None, {"model": "m", **options}, {})
    assert refused.value.field == field


def test_limits_of_connections_are_settings() -> None:
    limits = ConnectionLimits(5, 4, 3.0, 2.0, ("192.0.2.1", "10.0.0.0/8"))
    environment = {
        "QWEN3VL_SERVER_MAX_CONNECTIONS": "5",
        "QWEN3VL_SERVER_MAX_CONNECTIONS_PER_ADDRESS": "4",
        "QWEN3VL_SERVER_HEAD_TIMEOUT_S": "3",
        "QWEN3VL_SERVER_WRITE_TIMEOUT_S": "2",
        "QWEN3VL_SERVER_TRUSTED_PROXIES": "192.0.2.1, 10.0.0.0/8",
    }
    assert load_options(None, {"model": "m"}, environment).connection_limits == limits
    assert load_options(None, {"model": "m"}, {}).connection_limits == ConnectionLimits()
