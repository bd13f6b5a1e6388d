"""OpenAI's own client against a server: all forms of embeddings give the unsplit model's answer; what is refused."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_medium
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.tools.server_process import ServerProcess, running_server
from tests.support.http_api.chat import image
from tests.support.http_api.metrics import metric
from tests.support.http_api.tools import TOOLS, WEATHER
from tests.support.openai_parts import REFERENCE, SAMPLES, chat_of, part_of, questions
from tests.support.server_checkpoint import make_checkpoint
from tests.support.waiting import until

TINY = "qwen3vl-tiny"
MODEL_HASH = open_checkpoint(str(REFERENCE)).model_hash
IMAGES = ("colour", "count", "number-wide", "pair-1")
CLIPS = ("motion-wide", "first-colour")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The reference checkpoint with its vision tower; nothing is reused between requests, so sums are the same."""
    options = {"model": str(REFERENCE), "dtype": "float32", "prefix_cache_mib": 0}
    with running_server(threads=1, **options, allow_pixels=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def random_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model whose answers do not end, with a template that knows tools, and without a vision tower."""
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path_factory.mktemp("chat") / "random"))
    (folder / "chat_template.jinja").write_text(TOOLS)
    with running_server(threads=1, model=str(folder), max_body_mib=1, max_media=2, max_visual_tokens=64) as running:
        yield running


@pytest.fixture(scope="module")
def endless(random_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{random_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def extension(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_dump()["qwen3vl_edge"]
    return found


@pytest.mark.parametrize("form", ["pixels", "vllm", "vllm-row", "safetensors", "medium"])
@pytest.mark.parametrize("name", IMAGES)
def test_answers_are_the_unsplit_models(client: openai.OpenAI, name: str, form: str) -> None:
    question = questions()[name]
    answer = client.chat.completions.create(model=TINY, messages=chat_of(question, form, MODEL_HASH), max_tokens=24)
    assert answer.choices[0].message.content == question.answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == question.prompt.input_ids.size
    proven = form in ("pixels", "safetensors", "medium")
    said = extension(answer)
    assert (said["model_hash"], said["embeddings_proven"]) == (MODEL_HASH, proven)
    assert [item["sent"] for item in said["media"]] == ["pixels" if form == "pixels" else "tensors"] * len(
        question.media
    )


@pytest.mark.parametrize("name", CLIPS)
def test_clips_come_with_their_timestamps(client: openai.OpenAI, name: str) -> None:
    question = questions()[name]
    for form in ("vllm", "medium"):
        answer = client.chat.completions.create(model=TINY, messages=chat_of(question, form, MODEL_HASH), max_tokens=24)
        assert answer.choices[0].message.content == question.answer
    part = part_of(question.media[0], "vllm", timestamps=[0.5])
    with pytest.raises(openai.BadRequestError, match="one per temporal patch"):
        client.chat.completions.create(model=TINY, messages=[{"role": "user", "content": [part]}])


def test_embeddings_by_hash(server: ServerProcess, client: openai.OpenAI) -> None:
    """What PUT brought is found by its hash, and so is what an earlier chat brought with one."""
    question = questions()["shape"]
    item = question.media[0]
    chat = chat_of(question, "hash", MODEL_HASH)
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model=TINY, messages=chat)
    name = embedding_hash(item, MODEL_HASH)
    assert missing.value.body["missing"] == [name]  # type: ignore[index]
    assert missing.value.param == "messages.0.content.0.image_embeds"
    hashed = type(item)(item.kind, item.grid, item.embeds, item.deepstack, hash=name)
    content = bytes(encode_medium(hashed, MODEL_HASH))
    url = f"{server.url}/v1/embeddings/{name}"
    assert httpx.put(url, content=content, headers={"Content-Type": CONTENT_TYPE}).status_code == 201
    answer = client.chat.completions.create(model=TINY, messages=chat, max_tokens=24)
    assert answer.choices[0].message.content == question.answer
    assert extension(answer)["media"] == [{"kind": "image", "grid": str(item.grid), "sent": "hash", "proven": True}]

    other = questions()["colour"]
    part = part_of(other.media[0], "vllm")
    part["image_embeds"]["hash"] = "0" * 64
    with pytest.raises(openai.BadRequestError, match="hash does not match") as wrong:
        client.chat.completions.create(model=TINY, messages=[{"role": "user", "content": [part]}])
    assert wrong.value.param == "messages.0.content.0.image_embeds.hash"
    part["image_embeds"]["hash"] = embedding_hash(other.media[0], MODEL_HASH)
    assert extension(client.chat.completions.create(model=TINY, messages=[{"role": "user", "content": [part]}]))[
        "embeddings_proven"
    ]
    answer = client.chat.completions.create(model=TINY, messages=chat_of(other, "hash", MODEL_HASH))
    assert answer.choices[0].message.content == other.answer


def test_another_models_embeddings_are_refused(client: openai.OpenAI) -> None:
    item = questions()["colour"].media[0]
    for form in ("safetensors", "medium"):
        chat: Any = [{"role": "user", "content": [part_of(item, form, "ab" * 32)]}]
        with pytest.raises(openai.ConflictError, match="another model"):
            client.chat.completions.create(model=TINY, messages=chat)


def test_stream_tells_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    chat = chat_of(questions()["relation"], "vllm")
    options: dict[str, Any] = {"model": TINY, "messages": chat, "max_tokens": 24, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].logprobs is not None
    entries = whole.choices[0].logprobs.content or []
    text = whole.choices[0].message.content
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == text
    for entry in entries:
        assert entry.token == entry.top_logprobs[0].token  # greedy
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert len(entry.top_logprobs) == 3
    events = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    *told, counted = events
    assert told[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in told) == text
    parts = [event.choices[0].logprobs.content or [] for event in told if event.choices[0].logprobs is not None]
    assert [entry for part in parts for entry in part] == entries
    assert [event.choices[0].finish_reason for event in told] == [None] * (len(told) - 1) + ["stop"]
    assert counted.choices == []
    assert counted.usage is not None
    assert whole.usage is not None
    assert counted.usage.completion_tokens == whole.usage.completion_tokens
    assert {event.id for event in events} == {counted.id}
    assert not hasattr(told[1], "qwen3vl_edge")
    assert extension(told[-1])["model_hash"] == MODEL_HASH


def test_a_text_without_logprobs_and_usage_has_none(client: openai.OpenAI) -> None:
    events = list(
        client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "What?"}], max_tokens=3, stream=True
        )
    )
    assert all(event.usage is None and event.choices[0].logprobs is None for event in events)
    assert events[-1].choices[0].finish_reason in ("length", "stop")


def user(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content[0]["text"] if len(content) == 1 and "text" in content[0] else content}]


def test_a_stop_string_ends_the_generation(random_server: ServerProcess, endless: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "random", "messages": user("What is in the picture?")}
    whole = endless.chat.completions.create(**options, max_tokens=60)
    text = whole.choices[0].message.content or ""
    assert whole.choices[0].finish_reason == "length"
    stop = text[20:23]
    expected = text[: text.index(stop)]
    before = metric(random_server.url, 'qwen3vl_edge_tokens_total{kind="generated"}')
    stopped = metric(random_server.url, 'qwen3vl_edge_generations_total{finish_reason="stop"}')
    cut = endless.chat.completions.create(**options, max_tokens=400, stop=[stop, "never"], logprobs=True)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (expected, "stop")
    assert cut.usage is not None
    assert cut.usage.completion_tokens < 60
    assert cut.choices[0].logprobs is not None
    entries = [entry for entry in cut.choices[0].logprobs.content or [] if not entry.token.startswith("<|")]
    raw = b"".join(bytes(entry.bytes or []) for entry in entries)  # special tokens are not in the text
    assert raw.decode("utf-8", "replace").startswith(expected)
    assert (
        metric(random_server.url, 'qwen3vl_edge_tokens_total{kind="generated"}') - before == cut.usage.completion_tokens
    )
    assert metric(random_server.url, 'qwen3vl_edge_generations_total{finish_reason="stop"}') == stopped + 1
    events = list(endless.chat.completions.create(**options, max_tokens=400, stop=stop, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == expected
    assert events[-1].choices[0].finish_reason == "stop"


def test_sampling_is_passed_on(endless: openai.OpenAI) -> None:
    def answer(**options: Any) -> str:
        made = endless.chat.completions.create(model="random", messages=user("How many?"), max_tokens=12, **options)  # type: ignore[arg-type]
        return str(made.choices[0].message.content)

    assert answer() == answer(temperature=0) == answer(temperature=2, extra_body={"top_k": 1})
    assert answer(temperature=2, seed=1) == answer(temperature=2, seed=1) != answer(temperature=2, seed=2)


def test_a_key_is_answered_once(random_server: ServerProcess, endless: openai.OpenAI) -> None:
    """Also where a stop string ended the generation, and with another one it is another request."""
    options: dict[str, Any] = {"model": "random", "messages": user("Again?"), "max_tokens": 40, "temperature": 1.5}
    options |= {"extra_headers": {"Idempotency-Key": "k1"}, "stop": ["e", "a", "o"]}
    first = endless.chat.completions.create(**options)
    count = metric(random_server.url, 'qwen3vl_edge_idempotent_requests_total{outcome="replayed"}')
    again = endless.chat.completions.create(**options)
    events = list(endless.chat.completions.create(**options, stream=True))
    assert again.choices == first.choices
    assert again.id == first.id == events[0].id
    assert "".join(event.choices[0].delta.content or "" for event in events) == first.choices[0].message.content
    assert metric(random_server.url, 'qwen3vl_edge_idempotent_requests_total{outcome="replayed"}') == count + 2
    with pytest.raises(openai.ConflictError, match="another request"):
        endless.chat.completions.create(**{**options, "stop": "x"})


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_generation(random_server: ServerProcess, stream: bool) -> None:
    name = 'qwen3vl_edge_generations_total{finish_reason="cancelled"}'
    before = metric(random_server.url, name)
    chat = {"messages": user("Go on"), "max_tokens": 450, "stream": stream}
    url = f"{random_server.url}/v1/chat/completions"
    if stream:
        with httpx.stream("POST", url, json=chat) as response:
            next(response.iter_lines())
    else:
        body = json.dumps(chat).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        address = ("127.0.0.1", httpx.URL(random_server.url).port or 0)
        with socket.create_connection(address) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: metric(random_server.url, "qwen3vl_edge_running"))
    until(lambda: metric(random_server.url, name) == before + 1)


def test_several_chats_at_once_are_each_their_own(endless: openai.OpenAI) -> None:
    def ask(number: int) -> Any:
        return endless.chat.completions.create(model="random", messages=user(f"{number}?"), max_tokens=16)  # type: ignore[arg-type]

    alone = [ask(number).choices[0].message.content for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert [made.choices[0].message.content for made in pool.map(ask, range(4))] == alone


def test_tools_reach_the_prompt(endless: openai.OpenAI, client: openai.OpenAI) -> None:
    def tokens(**options: Any) -> int:
        made = endless.chat.completions.create(model="random", messages=user("Weather?"), max_tokens=2, **options)  # type: ignore[arg-type]
        assert made.usage is not None
        return made.usage.prompt_tokens

    assert tokens(tools=[WEATHER]) > tokens(tools=[WEATHER], tool_choice="none") == tokens()
    with pytest.raises(openai.BadRequestError, match="no tools"):
        client.chat.completions.create(model=TINY, messages=user("Weather?"), tools=[WEATHER])  # type: ignore[arg-type,list-item]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [TINY]


HASHED = {"image_grid_thw": [1, 4, 4], "hash": "0" * 64}


def embeds(**values: Any) -> list[dict[str, Any]]:
    return user("x", {"type": "image_embeds", "image_embeds": values})


def url(**options: Any) -> dict[str, Any]:
    """A part with options beside its URL."""
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", **options}}


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": []}, 400, "messages"),
    ({}, 400, "messages"),
    ({"messages": user("x"), "model": "gpt"}, 404, "model"),
    ({"messages": user("x"), "n": 2}, 400, "n"),
    ({"messages": user("x"), "temperature": 3}, 400, "temperature"),
    ({"messages": user("x"), "max_tokens": 5000}, 413, "max_tokens"),
    ({"messages": user("x" * 2000)}, 413, "max_tokens"),
    ({"messages": user("x"), "top_logprobs": 2}, 400, "top_logprobs"),
    ({"messages": user("x"), "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    ({"messages": user("x"), "response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"messages": user("x"), "tool_choice": "required"}, 400, "tool_choice"),
    ({"messages": user("x"), "tools": [{"type": "function"}]}, 400, "tools.0.function"),
    ({"messages": user("x"), "tools": [WEATHER], "parallel_tool_calls": False}, 400, "parallel_tool_calls"),
    ({"messages": user("x"), "stop": ["a"] * 17}, 400, "stop"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
    ({"messages": user({"type": "input_audio"})}, 400, "messages.0.content.0.type"),
    ({"messages": user("x", {"type": "image_embeds"})}, 400, "messages.0.content.1"),
    ({"messages": user("x", {"type": "text", "text": "y", "image_url": "z"})}, 400, "messages.0.content.1"),
    ({"messages": user(url(fps=1))}, 400, "messages.0.content.0.image_url.fps"),
    ({"messages": user(url(max_pixels="1"))}, 400, "messages.0.content.0.image_url.max_pixels"),
    ({"messages": embeds(**HASHED), "mm_processor_kwargs": {"max_pixels": 9}}, 400, "mm_processor_kwargs"),
    ({"messages": user("x"), "mm_processor_kwargs": {"fps": 9}}, 400, "mm_processor_kwargs.fps"),
    ({"messages": embeds()}, 400, "messages.0.content.1.image_embeds"),
    ({"messages": embeds(hash="0" * 64)}, 400, "messages.0.content.1.image_embeds"),
    ({"messages": embeds(image_embeds="AAAA")}, 400, "messages.0.content.1.image_embeds.image_grid_thw"),
    ({"messages": embeds(image_embeds="AAAA", image_grid_thw=[1, 4])}, 400, "messages.0.content.1.image_embeds."),
    ({"messages": embeds(image_embeds="AAAA", image_grid_thw=[1, 3, 4])}, 400, "image_grid_thw"),
    ({"messages": embeds(image_embeds="AAAA", image_grid_thw=[2, 4, 4])}, 400, "image_grid_thw"),
    ({"messages": embeds(image_embeds="AAAA", image_grid_thw=[1, 400, 400])}, 413, "image_grid_thw"),
    ({"messages": embeds(image_embeds="AAAA", image_grid_thw=[1, 4, 4])}, 400, "image_embeds.image_embeds"),
    ({"messages": embeds(**HASHED, timestamps=[1])}, 400, "timestamps"),
    ({"messages": embeds(**{**HASHED, "hash": "abc"})}, 400, "hash"),
    ({"messages": embeds(**HASHED, model_hash="abc")}, 409, "model_hash"),
    ({"messages": embeds(**HASHED)}, 404, "messages.0.content.1.image_embeds"),
    ({"messages": user(*[{"type": "image_embeds", "image_embeds": HASHED}] * 3)}, 413, "messages"),
    ({"messages": user("<|image_pad|>")}, 400, "messages"),
    ({"messages": user("x" * 2**20)}, 413, "body"),
    ({"messages": user("x", image(SAMPLES / "colour.png"))}, 400, "messages.0.content.1"),
]


@pytest.mark.parametrize(("body", "status", "field"), REFUSED)
def test_refusals_name_the_fault(random_server: ServerProcess, body: dict[str, Any], status: int, field: str) -> None:
    answer = httpx.post(f"{random_server.url}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert field in error["param"], error
    assert error["type"] == "invalid_request_error"


def test_pixels_are_refused_with_the_way_to_go(endless: openai.OpenAI, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"encoded on the device.*edge daemon.*--allow-pixels"):
        endless.chat.completions.create(model="random", messages=user("x", image(SAMPLES / "colour.png")))  # type: ignore[arg-type]
    clip = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    for who, model in ((endless, "random"), (client, TINY)):
        with pytest.raises(openai.BadRequestError, match=r"encoded on the device.*edge daemon"):
            who.chat.completions.create(model=model, messages=user("x", clip))  # type: ignore[arg-type]


def bomb() -> str:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    return str(image(buffer.getvalue())["image_url"]["url"])


BAD_PICTURES = [
    ("http://127.0.0.1:9/x.png", "fetches no URLs"),
    ("file:///etc/hostname", "fetches no URLs"),
    ("/etc/hostname", "fetches no URLs"),
    ("https://user:secret@example.org/x.png", "got 'https'"),
    ("data:text/html;base64,AAAA", "fetches no URLs"),
    ("data:image/png;base64,!!", "base64"),
    ("data:image/png;base64,AAAA", "not a picture"),
    ("data:image/svg+xml;base64,PHN2Zy8+", "not a picture"),
]


def test_bad_pictures_are_refused_by_name(client: openai.OpenAI) -> None:
    for url, words in [*BAD_PICTURES, (bomb(), "at most 8388608 pixels in a file of ")]:
        part = {"type": "image_url", "image_url": {"url": url}}
        with pytest.raises(openai.APIStatusError, match=re.escape(words)) as caught:
            client.chat.completions.create(model=TINY, messages=user("x", part))  # type: ignore[arg-type]
        assert caught.value.status_code in (400, 413)
        assert json.loads(caught.value.response.text)["error"]["param"] == "messages.0.content.1.image_url"
    data = (SAMPLES / "number-wide.png").read_bytes()
    with pytest.raises(openai.BadRequestError, match="corrupt"):
        client.chat.completions.create(model=TINY, messages=user("x", image(data[: len(data) // 2])))  # type: ignore[arg-type]


def test_base64_as_encoders_write_it(client: openai.OpenAI) -> None:
    data = (SAMPLES / "number-wide.png").read_bytes()
    lines = base64.encodebytes(data).decode()
    answers = set()
    for uri in (str(image(data)["image_url"]["url"]), f"DATA:Image/PNG;Base64,{lines}"):
        part = {"type": "image_url", "image_url": {"url": uri, "detail": "low"}}
        made = client.chat.completions.create(model=TINY, messages=user("What number?", part), max_tokens=8)  # type: ignore[arg-type]
        answers.add(made.choices[0].message.content)
    assert len(answers) == 1


def test_the_generate_route_is_as_it_was(client: openai.OpenAI, server: ServerProcess) -> None:
    ids = questions()["colour"].prompt.input_ids[:3].tolist()
    answer = httpx.post(f"{server.url}/v1/generate", json={"input_ids": ids, "max_new_tokens": 2})
    assert answer.status_code == 200
    assert len(answer.json()["generated_ids"]) <= 2
