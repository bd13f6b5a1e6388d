"""A real server process over real HTTP: answers, streams, refusals, and how it stops."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.tools.server_process import ServerProcess, running_server
from tests.support.http_api.generate import BINARY, events_of, post
from tests.support.http_api.metrics import metric
from tests.support.http_api.port import connect
from tests.support.paths import ROOT
from tests.support.raw_http import is_closed, until_closed
from tests.support.server_checkpoint import CASE_NAMES, make_case, make_checkpoint, oracle
from tests.support.waiting import until
from tests.support.wire_bodies import HeaderEdit, body_of, with_document, with_header

LIMITS = {"max_body_mib": 1, "max_prompt_tokens": 256, "max_media": 4, "max_visual_tokens": 64}
LIMITS |= {"max_new_tokens": 400}
SETTINGS = {**LIMITS, "max_queue": 4, "prefix_cache_mib": 0, "metrics_clients": True}  # a panel shows each client
SETTINGS |= {"max_connections_per_address": 32}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(threads=1, model=str(make_checkpoint()), **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def as_json(request: GenerateRequest, flat: bool = False) -> dict[str, Any]:
    """The JSON form: images first, then clips."""
    media = [*request.of_kind("image"), *request.of_kind("video")]
    levels = [[item.deepstack[level] for item in media] for level in range(len(media[0].deepstack))] if media else []

    def rows(arrays: list[Any]) -> list[Any]:
        return np.concatenate(arrays).tolist() if flat else [array.tolist() for array in arrays]

    return {
        "input_ids": request.input_ids.tolist(),
        "vision_embeddings": rows([item.embeds for item in media]) if media else [],
        "deepstack_embeddings": [rows(level) for level in levels],
        "image_grid_thw": [item.grid.as_list() for item in request.of_kind("image")],
        "video_grid_thw": [item.grid.as_list() for item in request.of_kind("video")],
        "max_new_tokens": request.sampling.max_new_tokens,
    }


# `running_server` says --device-map cpu.
REASON = "auto: device_map is set, which applies to the transformers engine"


def assert_error(response: httpx.Response, status: int, field: str | None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == field, error
    assert error["message"]
    assert error["code"]


def test_not_ready_before_loaded_then_ready(server: ServerProcess, client: httpx.Client) -> None:
    assert 503 in server.ready_statuses
    ready = client.get("/readyz").json()
    model = client.get("/v1/models").json()["data"][0]
    assert ready["status"] == "ready"
    assert model["id"] == ready["model"] == "tiny-dense"
    assert model["model_hash"] == oracle().checkpoint.model_hash
    text = sum(value.numel() for name, value in oracle().model.named_parameters() if ".visual." not in name)
    assert model["parameters"] == ready["parameters"] == text
    assert client.get("/healthz").json() == {"status": "ok"}
    log = server.log.read_text()
    assert (ready["engine"], ready["engine_reason"]) == ("transformers", REASON)
    for part in (
        f"engine: transformers ({REASON})",
        "tiny-dense",
        f"{text:,}",
        "not loaded",
        "cpu",
        "float32",
        "sdpa",
        server.url,
    ):
        assert part in log


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CASE_NAMES)
def test_answer_equals_the_unsplit_model(client: httpx.Client, name: str, dtype: str) -> None:
    case = make_case(name, dtype=dtype)
    answer = post(client, case.request).json()
    assert answer["generated_ids"] == oracle().greedy(make_case(name), 12)
    assert (answer["request_id"], answer["model"]) == (name, "tiny-dense")
    assert answer["model_hash"] == case.request.model_hash
    assert answer["usage"] == {
        "prompt_tokens": case.request.input_ids.size,
        "visual_tokens": sum(item.embeds.shape[0] for item in case.request.media),
        "reused_tokens": 0,
        "completion_tokens": len(answer["generated_ids"]),
    }
    assert set(answer["timings"]) == {"queue_s", "prefill_s", "decode_s"}


@pytest.mark.parametrize("flat", [False, True], ids=["per medium", "flat"])
@pytest.mark.parametrize("name", ["one image", "clip before image", "text only"])
def test_json_equals_binary(client: httpx.Client, name: str, flat: bool) -> None:
    request = make_case(name).request
    binary = post(client, request).json()
    answer = client.post("/v1/generate", json=as_json(request, flat)).json()
    for field in ("generated_ids", "text", "finish_reason", "usage"):
        assert answer[field] == binary[field]


def test_every_series_of_the_dashboard_is_there(client: httpx.Client) -> None:
    post(client, make_case("one image").request)
    have = set(re.findall(r"^# TYPE (\w+)", client.get("/metrics").text, re.MULTILINE))
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "server.json").read_text(encoding="utf-8"))
    wanted = {
        name.removesuffix("_bucket")
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"qwen3vl_edge_\w+", target["expr"])
    }
    assert len(wanted) > 15
    assert wanted <= have


@pytest.mark.parametrize("name", ["image and clip", "text only"])
def test_stream_equals_the_whole_answer(client: httpx.Client, name: str) -> None:
    request = make_case(name, max_new_tokens=40).request
    whole = post(client, request).json()
    for kind in (
        {"content": body_of(replace(request, stream=True)), "headers": BINARY},
        {"json": {**as_json(request), "stream": True}},
    ):
        with client.stream("POST", "/v1/generate", **kind) as response:  # type: ignore[arg-type]
            assert response.headers["content-type"].startswith("text/event-stream")
            *steps, last = events_of(response.iter_lines())
        assert [step["token_id"] for step in steps if step["token_id"] is not None] == whole["generated_ids"]
        assert "".join(step["text"] for step in steps) == whole["text"] == last["text"]
        for field in ("generated_ids", "finish_reason", "usage", "model", "model_hash"):
            assert last[field] == whole[field]


def test_same_seed_over_http(client: httpx.Client) -> None:
    sampling = Sampling(max_new_tokens=16, do_sample=True, temperature=1.5, seed=3)
    request = replace(make_case("one image").request, sampling=sampling)
    assert post(client, request).json()["generated_ids"] == post(client, request).json()["generated_ids"]


def test_concurrent_requests_are_all_answered_correctly(client: httpx.Client) -> None:
    names = ["one image", "text only", "clip", "two images", "image and clip"]
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: post(client, make_case(name).request).json(), names))
    assert [answer["request_id"] for answer in answers] == names
    assert [answer["generated_ids"] for answer in answers] == [oracle().greedy(make_case(name), 12) for name in names]


GOOD = make_case("image and clip", dtype="float16").request


def changed(**changes: Any) -> bytes:
    return body_of(replace(GOOD, **changes))


def with_media(**changes: Any) -> bytes:
    return changed(media=(replace(GOOD.media[0], **changes), *GOOD.media[1:]))


def edit_header(edit: HeaderEdit) -> bytes:
    return with_header(body_of(GOOD), edit)


def edit_document(**changes: Any) -> bytes:
    return with_document(body_of(GOOD), **changes)


def spoiled(value: float) -> bytes:
    embeds = GOOD.media[0].embeds.copy()
    embeds[2, 3] = value
    return with_media(embeds=embeds)


def huge(table: dict[str, Any]) -> None:
    table["embeds.0"].update(shape=[2**40, 64], data_offsets=[0, 2**47])


IDS = GOOD.input_ids
REFUSED: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "header"),
    ("truncated", body_of(GOOD)[:-100], 400, "body"),
    ("no safetensors", b"\x00" * 100, 400, "header"),
    ("wrong version", edit_document(version=7), 400, "version"),
    ("wrong hash", changed(model_hash="0" * 64), 409, "model_hash"),
    ("NaN", spoiled(np.nan), 400, "embeds.0"),
    ("infinity", spoiled(-np.inf), 400, "embeds.0"),
    ("wrong width", with_media(embeds=GOOD.media[0].embeds[:, :-1]), 400, "embeds.0"),
    ("wrong levels", with_media(deepstack=GOOD.media[0].deepstack[:2]), 400, "deepstack.0"),
    ("wrong dtype", edit_header(lambda table: table["embeds.0"].update(dtype="BF16")), 400, "embeds.0"),
    ("row too few", with_media(embeds=GOOD.media[0].embeds[:-1]), 400, "embeds.0"),
    ("placeholder too few", changed(input_ids=IDS[IDS != 5]), 400, "input_ids"),
    ("id outside the vocabulary", changed(input_ids=np.append(IDS, 320)), 400, "input_ids"),
    ("negative id", changed(input_ids=np.append(IDS, -1)), 400, "input_ids"),
    ("mask too short", changed(attention_mask=np.ones(3, np.int64)), 400, "attention_mask"),
    ("unknown sampling", edit_document(sampling={"num_beams": 4}), 400, "sampling.num_beams"),
    ("sampling out of range", edit_document(sampling={"temperature": -1}), 400, "sampling.temperature"),
    ("negative grid", with_media(grid=Grid(1, -4, -6)), 400, "grid_thw.0"),
    ("grid of another size", with_media(grid=Grid(1, 1000, 1000)), 400, "embeds.0"),
    ("huge claim", edit_header(huge), 400, "embeds.0"),
    ("too many media", edit_document(media=[{"kind": "image", "levels": 3}] * 5), 413, "media"),
    ("too many tokens", changed(input_ids=np.zeros(257, np.int64)), 413, "input_ids"),
    ("too many new tokens", changed(sampling=Sampling(max_new_tokens=401)), 413, "sampling.max_new_tokens"),
    ("too large", bytes(2**20 + 1), 413, "body"),
    ("request_id too long", changed(request_id="x" * 129), 400, "request_id"),
]


@pytest.mark.parametrize(("body", "status", "field"), [item[1:] for item in REFUSED], ids=[item[0] for item in REFUSED])
def test_malformed_body_is_named(client: httpx.Client, body: bytes, status: int, field: str) -> None:
    assert_error(client.post("/v1/generate", content=body, headers=BINARY), status, field)


JSON_REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("unknown field", {"n": 2}, 422, "n"),
    ("ids as text", {"input_ids": "1 2 3"}, 422, "input_ids"),
    ("ids of floats", {"input_ids": [1.5]}, 422, "input_ids.0"),
    ("id of 70 bits", {"input_ids": [2**70]}, 400, "input_ids"),
    ("grid of two", {"image_grid_thw": [[1, 4]]}, 422, "image_grid_thw.0"),
    ("negative grid", {"image_grid_thw": [[1, -4, -6]]}, 400, "image_grid_thw.0"),
    ("negative clip", {"video_grid_thw": [[-3, 4, 4]]}, 400, "video_grid_thw.0"),
    ("image of frames", {"image_grid_thw": [[2, 2, 6]]}, 400, "image_grid_thw.0"),
    ("huge grid", {"image_grid_thw": [[1, 2**40, 2**40]]}, 413, "grid_thw"),
    ("ragged rows", {"vision_embeddings": [[[1.0], [1.0, 2.0]], [[1.0]]]}, 400, "vision_embeddings.0"),
    ("rows of text", {"vision_embeddings": [[["1"]], [["1"]]]}, 400, "vision_embeddings.0"),
    ("flat, too few rows", {"vision_embeddings": [[0.0] * 64] * 2}, 400, "vision_embeddings"),
    ("one list too few", {"vision_embeddings": [[[0.0] * 64] * 6]}, 400, "vision_embeddings"),
    ("no levels", {"deepstack_embeddings": []}, 400, "deepstack_embeddings"),
    ("wrong hash", {"model_hash": "abc"}, 409, "model_hash"),
    ("mask of twos", {"attention_mask": [2]}, 400, "attention_mask"),
    ("temperature", {"temperature": 0}, 400, "temperature"),
    ("too many tokens", {"max_new_tokens": 401}, 413, "max_new_tokens"),
]


@pytest.mark.parametrize(
    ("changes", "status", "field"), [item[1:] for item in JSON_REFUSED], ids=[item[0] for item in JSON_REFUSED]
)
def test_malformed_json_is_named(client: httpx.Client, changes: dict[str, Any], status: int, field: str) -> None:
    assert_error(client.post("/v1/generate", json={**as_json(GOOD), **changes}), status, field)


def test_json_values_that_are_not_finite_or_missing(client: httpx.Client) -> None:
    good = as_json(GOOD)
    text = json.dumps(good).replace("[[[", "[[[NaN, ", 1)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/v1/generate", content=text, headers=headers).status_code == 400
    wide = json.loads(json.dumps(good))
    wide["deepstack_embeddings"][2][1][0][0] = 1e300
    assert_error(client.post("/v1/generate", json=wide), 400, "deepstack_embeddings.2.1")
    del good["input_ids"]
    assert_error(client.post("/v1/generate", json=good), 422, "input_ids")
    assert_error(client.post("/v1/generate", content=b"{", headers=headers), 400, "body")
    assert_error(client.post("/v1/generate", content=b"[]", headers=headers), 422, "body")


def test_http_faults_are_openai_errors(client: httpx.Client) -> None:
    assert_error(client.get("/nothing"), 404, "path")
    refused = client.get("/v1/generate")
    assert_error(refused, 405, "path")
    assert refused.headers["allow"] == "POST"
    assert_error(client.post("/v1/generate", content=b"x", headers={"Content-Type": "text/plain"}), 415, "Content-Type")
    zipped = {**BINARY, "Content-Encoding": "gzip"}
    assert_error(client.post("/v1/generate", content=b"x", headers=zipped), 415, "Content-Encoding")


def raw(server: ServerProcess, text: bytes) -> bytes:
    with connect(server.url) as connection:
        connection.sendall(text)
        return connection.recv(65536)


def test_length_is_wanted_and_believed_only_as_an_upper_bound(server: ServerProcess) -> None:
    start = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: " + CONTENT_TYPE.encode() + b"\r\n"
    assert b" 411 " in raw(server, start + b"\r\n")
    assert b" 413 " in raw(server, start + b"Content-Length: 999999999999\r\n\r\n")  # answered without a body


def test_chunked_body_is_cut_at_the_limit(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(2**16)

    assert_error(client.post("/v1/generate", content=chunks(), headers=BINARY), 413, "body")
    request = make_case("one image").request
    parts = (bytes(buffer) for buffer in encode_request(request).buffers)
    assert client.post("/v1/generate", content=parts, headers=BINARY).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_cancels_the_generation(server: ServerProcess, client: httpx.Client, stream: bool) -> None:
    name = 'qwen3vl_edge_generations_total{finish_reason="cancelled"}'
    before, tokens = (
        metric(str(client.base_url), name),
        metric(str(client.base_url), 'qwen3vl_edge_tokens_total{kind="generated"}'),
    )
    request = replace(make_case("text only", max_new_tokens=400).request, stream=stream)
    head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: {CONTENT_TYPE}\r\n"
    body = body_of(request)
    with connect(server.url) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            assert b" 200 " in connection.recv(4096)
        else:
            until(
                lambda: metric(str(client.base_url), "qwen3vl_edge_requests_running") > 0
            )  # a client that goes earlier begins none
    until(lambda: metric(str(client.base_url), name) == before + 1)
    assert metric(str(client.base_url), 'qwen3vl_edge_tokens_total{kind="generated"}') - tokens < 400


def test_full_queue_is_429_with_retry_after(client: httpx.Client) -> None:
    request = make_case("text only", max_new_tokens=300).request
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: post(client, request), range(12)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert_error(answer, 429, None)
        assert int(answer.headers["retry-after"]) >= 1
    assert len({tuple(answer.json()["generated_ids"]) for answer in answers if answer.status_code == 200}) == 1


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    received = metric(str(client.base_url), "qwen3vl_edge_received_bytes_total")
    count = metric(str(client.base_url), 'qwen3vl_edge_requests_total{endpoint="/v1/generate",status="200"}')
    prefill = metric(str(client.base_url), 'qwen3vl_edge_generation_seconds_count{phase="prefill"}')
    body = body_of(make_case("one image").request)
    client.post("/v1/generate", content=body, headers=BINARY)
    assert metric(str(client.base_url), "qwen3vl_edge_received_bytes_total") == received + len(body)
    small = zstandard.ZstdCompressor().compress(body)  # counted as it came
    assert client.post("/v1/generate", content=small, headers=BINARY | {"Content-Encoding": "zstd"}).status_code == 200
    assert metric(str(client.base_url), "qwen3vl_edge_received_bytes_total") == received + len(body) + len(small)
    assert (
        metric(str(client.base_url), 'qwen3vl_edge_requests_total{endpoint="/v1/generate",status="200"}') == count + 2
    )
    assert metric(str(client.base_url), 'qwen3vl_edge_generation_seconds_count{phase="prefill"}') == prefill + 2
    assert metric(str(client.base_url), "qwen3vl_edge_queue_depth") == 0
    assert metric(str(client.base_url), 'qwen3vl_edge_requests_total{endpoint="other",status="404"}') >= 1


def test_idle_connections_lock_nobody_out_and_an_ended_one_is_answered(server: ServerProcess) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server.url)) for _ in range(40)]
        until(lambda: is_closed(idle[7]))
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle[-1].shutdown(socket.SHUT_WR)
        assert b" 200 OK" in until_closed(idle[-1])
    assert "max_connections_per_address = 32" in server.log.read_text()


def test_openapi_describes_both_bodies(client: httpx.Client) -> None:
    content = client.get("/openapi.json").json()["paths"]["/v1/generate"]["post"]["requestBody"]["content"]
    assert set(content) == {CONTENT_TYPE, "application/json"}


def test_sigterm_lets_a_running_answer_finish_and_exits_cleanly(server: ServerProcess) -> None:
    """Last in this file: it stops the server that the others use."""
    request = replace(make_case("text only", max_new_tokens=200).request, stream=True)
    with httpx.stream("POST", f"{server.url}/v1/generate", content=body_of(request), headers=BINARY) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        last = events_of(lines)[-1]
    assert last["finish_reason"] in ("length", "stop")
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.log.read_text()
