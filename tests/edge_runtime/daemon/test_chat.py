"""The daemon as OpenAI's own client sees it: the answers are those of `ask`, and what it cannot do it says."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from qwen3vl_edge.contract.http.stop_matcher import StopStrings
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, decode_request
from qwen3vl_edge.contract.wire.request import Limits, Sampling
from qwen3vl_edge.edge_runtime.ask import ask, build_messages
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from tests.support.http_api.chat import data_uri, image, user
from tests.support.http_api.port import connect
from tests.support.raw_http import is_closed, until_closed
from tests.support.video_files import lossless_clip
from tests.support.waiting import until

TINY = "qwen3vl-tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("daemon")


@pytest.fixture(scope="module")
def daemon(folder: Path, bundle: Path, server_url: str, samples: Path) -> Iterator[DaemonProcess]:
    settings = (
        f'precision = "fp32"\nmedia_folders = ["{samples}"]\ncache = "{folder / "cache"}"\n'
        f'unix_socket = "{folder / "edge.sock"}"\nmax_media_mib = 1\nmax_body_mib = 3\n'
        "max_connections_per_address = 32\n"
    )
    with running_daemon(folder, bundle, server_url, settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(daemon: DaemonProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def questions(samples: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (samples / "questions.jsonl").read_text().splitlines()]


def as_openai(messages: list[dict[str, Any]], samples: Path, embed: bool) -> list[dict[str, Any]]:
    """Qwen's messages as OpenAI's, media as data URIs or as files."""
    found = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append(part)
                continue
            path = samples / part[part["type"]]
            url = data_uri(path) if embed else f"file://{path}"
            parts.append({"type": f"{part['type']}_url", f"{part['type']}_url": {"url": url}})
        found.append({**message, "content": parts})
    return found


@pytest.mark.parametrize("embed", [True, False], ids=["data", "file"])
def test_answers_are_those_of_ask(
    client: openai.OpenAI, bundle: Path, server_url: str, samples: Path, embed: bool
) -> None:
    """Images, pairs and clips: every sample question, through OpenAI's client, streamed and whole."""
    from qwen3vl_edge.edge_runtime.inputs.messages_file import read_conversations

    right = 0
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision="fp32"))) as edge:
        for (_, messages), question in zip(
            read_conversations(samples / "questions.jsonl", "questions"), questions(samples), strict=True
        ):
            expected = ask(edge, server_url, messages, Sampling(max_new_tokens=24))
            sent = as_openai(question["messages"], samples, embed)
            whole = client.chat.completions.create(model=TINY, messages=sent, max_tokens=24)
            assert whole.choices[0].message.content == expected.text
            assert whole.choices[0].finish_reason == expected.finish_reason
            assert whole.usage is not None
            assert whole.usage.completion_tokens == len(expected.generated_ids)
            events = list(
                client.chat.completions.create(
                    model=TINY, messages=sent, max_tokens=24, stream=True, stream_options={"include_usage": True}
                )
            )
            text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
            assert text == expected.text
            assert events[-1].usage == whole.usage
            assert [event.choices[0].finish_reason for event in events[:-1]][-1] == expected.finish_reason
            right += expected.text == question["answer"]
    assert right >= len(questions(samples)) - 2


def test_the_answer_says_what_the_model_saw(client: openai.OpenAI, samples: Path) -> None:
    """A picture that no bucket fits exactly was resized, or went to the dynamic graph: the client is told."""
    picture = Image.open(samples / "colour.png").resize((150, 131))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    answer = client.chat.completions.create(model=TINY, messages=[user(image(uri), "What colour?")])
    media = answer.model_dump()["qwen3vl_edge"]["media"]
    assert len(media) == 1
    assert media[0]["native"]
    assert {"grid", "fixed", "scale", "distortion", "backend", "precision", "encode_s"} <= set(media[0])


def test_a_second_turn_encodes_nothing_again(client: openai.OpenAI, daemon: DaemonProcess, samples: Path) -> None:
    turn = user(image(data_uri(samples / "shape.png")), "What shape is the yellow object?")
    first = client.chat.completions.create(model=TINY, messages=[turn])
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    second = client.chat.completions.create(model=TINY, messages=[turn, answer, user("Are you sure?")])
    assert second.model_dump()["qwen3vl_edge"]["media"][0]["cached"]
    text = httpx.get(f"{daemon.url}/metrics").text
    assert 'qwen3vl_edge_device_media_total{graph="cache"' in text
    assert "qwen3vl_edge_device_requests_in_flight 0.0" in text


def test_stop_strings_and_limits(client: openai.OpenAI, samples: Path) -> None:
    messages = [user(image(data_uri(samples / "colour.png")), "What colour is the cross?")]
    whole = client.chat.completions.create(model=TINY, messages=messages).choices[0].message.content
    assert whole is not None
    word = whole.split()[-2]
    cut = client.chat.completions.create(model=TINY, messages=messages, stop=[word, "never"])
    assert cut.choices[0].message.content == whole[: whole.index(word)]
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model=TINY, messages=messages, max_completion_tokens=2)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 2


def test_sampling_is_passed_on(client: openai.OpenAI) -> None:
    def answer(**options: Any) -> str:
        made = client.chat.completions.create(model=TINY, messages=[user("How many?")], max_tokens=12, **options)
        return made.choices[0].message.content or ""

    assert answer() == answer(temperature=0)
    assert answer(temperature=2, seed=1) == answer(temperature=2, seed=1)
    assert len({answer(temperature=2, seed=seed) for seed in range(6)}) > 1


def test_text_alone_and_other_roles(client: openai.OpenAI) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What can you do?"}]
    found = client.chat.completions.create(model="default", messages=messages, max_tokens=4)  # type: ignore[arg-type]
    assert found.usage is not None
    assert found.usage.completion_tokens > 0


def test_models_and_the_unix_socket(client: openai.OpenAI, daemon: DaemonProcess, folder: Path) -> None:
    assert [model.id for model in client.models.list()] == [TINY]
    path = folder / "edge.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as local:
        assert local.get("http://edge/v1/models").json() == httpx.get(f"{daemon.url}/v1/models").json()


def test_idle_connections_lock_nobody_out_and_an_ended_one_is_answered(daemon: DaemonProcess, folder: Path) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(daemon.url)) for _ in range(40)]
        until(lambda: is_closed(idle[7]))
        assert httpx.get(f"{daemon.url}/healthz").status_code == 200
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.connect(str(folder / "edge.sock"))
        for connection in (local, idle[-1]):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 OK" in until_closed(connection)


def test_encode_returns_what_would_be_sent(daemon: DaemonProcess, bundle: Path, samples: Path) -> None:
    chat = {"messages": [user(image(data_uri(samples / "where.png")), "Where?")]}
    answer = httpx.post(f"{daemon.url}/v1/encode", json=chat)
    assert answer.headers["content-type"] == CONTENT_TYPE
    found = decode_request(bytearray(answer.content), Limits())
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision="fp32"))) as edge:
        expected = edge.encode(build_messages("Where?", [str(samples / "where.png")], [])).request
    np.testing.assert_array_equal(found.input_ids, expected.input_ids)
    np.testing.assert_array_equal(found.media[0].embeds, expected.media[0].embeds)


def url(kind: str, reference: str, **options: Any) -> dict[str, Any]:
    """A part, with options beside its URL."""
    return {"type": f"{kind}_url", f"{kind}_url": {"url": reference, **options}}


def _red() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 256), (200, 0, 0)).save(buffer, "PNG")
    return data_uri(buffer.getvalue())


RED = _red()


def test_options_beside_a_url_are_done(daemon: DaemonProcess, folder: Path) -> None:
    """`max_pixels` and `fps` as qwen-vl-utils takes them; OpenAI's `detail` has no effect."""

    def grid(part: dict[str, Any]) -> str:
        answer = httpx.post(
            f"{daemon.url}/v1/chat/completions", json={"messages": [user(part, "What?")], "max_tokens": 1}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["qwen3vl_edge"]["media"][0]["native"])

    assert grid(url("image", RED)) == grid(url("image", RED, detail="low", max_pixels=None)) == "1x16x20"
    assert grid(url("image", RED, max_pixels=320 * 256 // 4)) == "1x8x10"
    assert grid(url("image", RED, resized_height=64, resized_width=96)) == "1x4x6"
    lossless_clip(folder / "clip.mp4", 12, fps=2)
    clip = data_uri(folder / "clip.mp4")
    assert grid(url("video", clip)).startswith("6x")
    assert grid(url("video", clip, fps=1)).startswith("3x")
    assert grid(url("video", clip, nframes=4)).startswith("2x")


def test_penalties_and_biases_reach_the_model(client: openai.OpenAI) -> None:
    def answer(**options: Any) -> tuple[str | None, Any]:
        messages: Any = [{"role": "user", "content": "What?"}]
        made = client.chat.completions.create(model=TINY, messages=messages, max_tokens=6, **options)
        return made.choices[0].message.content, made.model_dump()["qwen3vl_edge"].get("penalties")

    plain, none = answer()
    biased, evidence = answer(logit_bias={"70": 100})
    assert none is None
    assert (evidence, biased == plain) == ({"logit_bias": {"70": 100.0}}, False)
    both, evidence = answer(logit_bias={"70": 100, "71": 100}, frequency_penalty=2)
    assert evidence == {"frequency_penalty": 2.0, "logit_bias": {"70": 100.0, "71": 100.0}}
    assert both not in (plain, biased)


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": []}, 400, "messages"),
    ({}, 400, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
    ({"messages": [user("x")], "model": "gpt"}, 404, "model"),
    ({"messages": [user("x")], "n": 2}, 400, "n"),
    ({"messages": [user("x")], "temperature": 3}, 400, "temperature"),
    ({"messages": [user("x")], "max_tokens": 0}, 400, "max_tokens"),
    ({"messages": [user("x")], "max_tokens": 10**6}, 413, " max_tokens"),  # the server's refusal, with the chat's name
    ({"messages": [user("x")], "presence_penalty": 3}, 400, "presence_penalty"),
    ({"messages": [user("x")], "frequency_penalty": -3}, 400, "frequency_penalty"),
    ({"messages": [user("x")], "logit_bias": {"7": 101}}, 400, " logit_bias.7"),
    ({"messages": [user("x")], "logit_bias": {"99999": 1}}, 400, " logit_bias.99999"),
    ({"messages": [user("x")], "logprobs": True}, 400, "logprobs"),
    ({"messages": [user("x")], "tools": [{"type": "function"}]}, 400, "tools"),
    ({"messages": [user("x")], "response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"messages": [user({"type": "input_audio"})]}, 400, "type"),
    ({"messages": [user({"type": "image_url"})]}, 400, "content.0"),
    ({"messages": [user(image("/etc/passwd"))]}, 400, "allowed folder"),
    ({"messages": [user(image("file:///etc/hostname"))]}, 400, "allowed folder"),
    ({"messages": [user(image("data:image/png;base64,!!"))]}, 400, "base64"),
    ({"messages": [user(image("data:image/png;base64,AAAA"))]}, 400, "picture"),
    ({"messages": [user(image("data:text/html;base64,AAAA"))]}, 400, "is not a picture: expected data:image/"),
    ({"messages": [user(image("http://127.0.0.1:9/x.png"))]}, 400, "private"),
    ({"messages": [user(image("http://[::ffff:10.0.0.1]/x.png"))]}, 400, "private"),
    ({"messages": [user(image("http://169.254.169.254/latest"))]}, 400, "private"),
    ({"messages": [user(image("ftp://example.org/x.png"))]}, 400, "allowed folder"),
    (
        {"messages": [user(image("HTTP://u:secret@127.0.0.1:9/x.png"))]},
        400,
        "picture HTTP://127.0.0.1:9/x.png leads into",
    ),
    ({"messages": [user({**image("a.png"), "text": "What?"})]}, 400, "part of type image_url has text too"),
    ({"messages": [user({**url("image", "a.png"), "type": "text", "text": "?"})]}, 400, "type text has image_url too"),
    ({"messages": [user(url("image", "a.png", fps=1))]}, 400, "messages.0.content.0.image_url.fps"),
    ({"messages": [user(url("video", "a.mp4", seconds=1))]}, 400, "messages.0.content.0.video_url.seconds"),
    ({"messages": [user(url("image", "camera:door", max_pixels=1))]}, 400, "messages.0.content.0.image_url.max_pixels"),
    ({"messages": [user(url("image", RED, max_pixels="4096"))]}, 400, "max_pixels is not such a number"),
    ({"messages": [user(url("image", RED, min_pixels=9, max_pixels=8))]}, 400, "max_pixels is below min_pixels"),
    ({"messages": [user(url("image", RED, resized_width=64))]}, 400, "image_url.resized_width"),
    (
        {"messages": [user("x"), user("x", url("image", RED, resized_height=32, resized_width=6400))]},
        400,
        "messages[1].content[1].resized_height",
    ),
    ({"messages": [user(RED)], "mm_processor_kwargs": {"fps": 1}}, 400, "mm_processor_kwargs.fps"),
    ({"messages": [user(RED)], "mm_processor_kwargs": {"size": {"height": 1}}}, 400, "mm_processor_kwargs.size"),
    ({"messages": [user(RED)], "mm_processor_kwargs": 7}, 400, "mm_processor_kwargs"),
    ({"messages": [user(RED)], "size": {"longest_edge": 1}}, 400, "size"),
    ({"messages": [user(url("image", RED, resized_height=0, resized_width=64))]}, 400, "resized_height is not such"),
    (
        {"messages": [user(url("video", "data:video/mp4;base64,I0VYVE0zVQo="))]},
        400,
        "data:video/mp4;base64,I0VYVE0zVQo= is not a",
    ),
    ({"messages": [user(image("data:image/png;base64," + "A" * (2 * 2**20)))]}, 413, "too large"),
    ({"messages": [user("x" * (4 * 2**20))]}, 413, "too large"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD)
def test_refusals_name_the_fault(daemon: DaemonProcess, body: dict[str, Any], status: int, words: str) -> None:
    answer = httpx.post(f"{daemon.url}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert words in f"{error['message']} {error['param']}"
    assert error["type"] == "invalid_request_error"


def test_a_decompression_bomb_is_refused_before_it_is_decoded(daemon: DaemonProcess) -> None:
    """One bit a pixel: a hundred kilobytes that would become a gigabyte of RGB."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert len(uri) < 2**20
    answer = httpx.post(f"{daemon.url}/v1/chat/completions", json={"messages": [user(image(uri), "What?")]}, timeout=30)
    assert answer.status_code == 413
    assert "is too large: expected at most 8388608 pixels in a file of " in answer.json()["error"]["message"]


def test_stop_strings_in_pieces() -> None:
    text = "one two three two"
    for stops in (["two"], ["three", "o t"], ["zzz"], ["e two"], []):
        places = [text.find(stop) for stop in stops if stop in text]
        expected = text[: min(places)] if places else text
        for size in (1, 2, 3, 50):
            holder = StopStrings(stops)
            shown = "".join(holder.add(text[start : start + size]) for start in range(0, len(text), size))
            assert shown + holder.finish() == expected
            assert holder.found == bool(places)


def test_systemd_is_told(tmp_path: Path, bundle: Path, server_url: str) -> None:
    path = tmp_path / "notify"
    heard: list[str] = []

    def listen(manager: socket.socket) -> None:
        while "STOPPING=1" not in heard:
            heard.append(manager.recv(64).decode())

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(120)
        reader = threading.Thread(target=listen, args=(manager,))
        reader.start()
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}
        with running_daemon(tmp_path, bundle, server_url, **environment):
            pass
        reader.join(30)
    assert {"READY=1", "WATCHDOG=1", "STOPPING=1"} <= set(heard)


def test_a_manager_that_does_not_read_holds_up_nothing(tmp_path: Path, bundle: Path, server_url: str) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "20000"}
        with running_daemon(tmp_path, bundle, server_url, **environment) as running:
            assert httpx.get(f"{running.url}/healthz").status_code == 200
